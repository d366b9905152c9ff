//! Why a function waits, as data and in words.

use std::fmt;

use shoal_gpu::Request;
use shoal_state::model::Resources;
use shoal_state::{FunctionId, ImageId, State, Timestamp};

use crate::room::disk_of;

/// What is in the way on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what the sentence of their variant names")]
pub enum Obstacle {
    /// Too little CPU is free, in thousandths of a core.
    Cpu { needs_milli: u32, free_milli: u32 },
    /// Too little memory is free, in bytes.
    Memory { needs_bytes: u64, free_bytes: u64 },
    /// Too little disk is left to be set aside, in bytes.
    Disk { needs_bytes: u64, free_bytes: u64 },
    /// Too few GPUs are free.
    Gpus { needs: u32, free: u32 },
    /// The node is in no region that the function asks for.
    Region,
    /// It is of another cloud.
    Cloud,
    /// It may be taken away at any time.
    Preemptible,
    /// The node takes no new tasks.
    Drains,
    /// The node has not been heard for a moment.
    Silent,
    /// The node is down.
    Down,
}

/// Why a function does not get the containers that its work asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what the sentence of their variant names")]
pub enum Why {
    /// Only the function's id is known so far.
    NotDefined,
    /// The image is not built.
    NoImage { image: ImageId },
    /// The image's build failed.
    ImageFailed { image: ImageId },
    /// The function has as many containers as it may have.
    ContainersMax { containers_max: u32 },
    /// Its containers end as soon as they start.
    Held { until: Timestamp, now: Timestamp },
    /// No node has joined.
    NoNodes,
    /// Where it may run is in its definition, which is not here yet.
    NotRead,
    /// No node is where it may run.
    Nowhere { why: String },
    /// No node is large enough, even when empty.
    NeverFits { needs: Resources, nodes: Vec<(String, Resources)> },
    /// No node has room now.
    NoRoom { needs: Resources, nodes: Vec<(String, Obstacle)> },
    /// All nodes together are too small for a gang, even when empty: they hold so many of its containers.
    GangNeverFits { size: u32, needs: Resources, holds: u64 },
    /// No room now for all containers of a gang at once: so many fit.
    NoRoomForGang { size: u32, fits: u32, needs: Resources, nodes: Vec<(String, Obstacle)> },
    /// A gang may run still on a node that is down.
    Fencing { node: String },
    /// Some nodes do not know gangs.
    OldNodes,
    /// None of the GPUs that it asks for is free.
    NoGpus { choices: Vec<Request>, nodes: Vec<(String, Obstacle)> },
    /// No node has what it asks for; with what there is.
    NeverGpus { choices: Vec<Request>, there: String },
    /// A node will have room when tasks that stop have ended.
    RoomSoon { node: String },
    /// A function that has more than its share gives a container up once that is done with its inputs.
    GivesWay { function: FunctionId, node: String },
    /// As many containers start as nodes have cores, or as one plan may have; the next plan continues.
    NextPlan,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { free_milli, .. } => write!(f, "has {} free", cores(*free_milli)),
            Self::Memory { free_bytes, .. } => write!(f, "has {} free", mebibytes(*free_bytes)),
            Self::Disk { free_bytes, .. } => write!(f, "has {} of disk left", mebibytes(*free_bytes)),
            Self::Gpus { free, .. } => write!(f, "has {free} free"),
            Self::Region => f.write_str("is in another region"),
            Self::Cloud => f.write_str("is of another cloud"),
            Self::Preemptible => f.write_str("is preemptible"),
            Self::Drains => f.write_str("drains"),
            Self::Silent => f.write_str("is not heard at the moment"),
            Self::Down => f.write_str("is down"),
        }
    }
}

impl Obstacle {
    fn wanted(&self) -> Option<String> {
        match self {
            Self::Cpu { needs_milli, .. } => Some(cores(*needs_milli)),
            Self::Memory { needs_bytes, .. } => Some(format!("{} memory", mebibytes(*needs_bytes))),
            Self::Disk { needs_bytes, .. } => Some(disk(*needs_bytes)),
            Self::Gpus { needs, .. } => Some(gpus(*needs)),
            Self::Region => Some("a node in its region".to_owned()),
            Self::Cloud => Some("a node of its cloud".to_owned()),
            Self::Preemptible => Some("a node that is not preemptible".to_owned()),
            Self::Drains | Self::Silent | Self::Down => None,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDefined => f.write_str("waiting for its definition: the client has not created it yet"),
            Self::NoImage { image } => write!(f, "waiting for image {image}: it is not built yet"),
            Self::ImageFailed { image } => write!(f, "image {image} failed to build"),
            Self::ContainersMax { containers_max } => {
                write!(f, "waiting for one of its containers: all {containers_max} it may have are in use")
            }
            Self::Held { until, now } => {
                let left_ms = until.0.saturating_sub(now.0);
                write!(f, "its containers end as soon as they start: next try in {} s", left_ms.div_ceil(1000))
            }
            Self::NoNodes => f.write_str("waiting for a node: none has joined"),
            Self::NotRead => f.write_str("waiting for its definition to be read on the node that leads"),
            Self::Nowhere { why } => write!(f, "cannot start: {why}"),
            Self::NeverFits { needs, nodes } => never_fits(f, needs, nodes),
            Self::NoRoom { nodes, .. } => waiting(f, nodes),
            Self::GangNeverFits { size, needs, holds } => write!(f, "cannot start: {}", too_large(*size, needs, *holds)),
            Self::NoRoomForGang { size, fits, needs, nodes } => {
                write!(f, "waiting for room for all {size} containers of a cluster at once, each {}: {fits} fit now", each(needs))?;
                nodes.iter().try_for_each(|(name, obstacle)| write!(f, "; node {name} {obstacle}"))
            }
            Self::Fencing { node } => {
                write!(f, "waiting until node {node}, which is down, has surely stopped its containers: a cluster must not run twice")
            }
            Self::OldNodes => f.write_str("waiting until all nodes are of a release that knows clustered functions"),
            Self::NoGpus { choices, nodes } => {
                let nodes: Vec<String> = nodes
                    .iter()
                    .map(|(name, obstacle)| match obstacle {
                        Obstacle::Gpus { .. } => format!("node {name} has none of them free"),
                        other => format!("node {name} {other}"),
                    })
                    .collect();
                write!(f, "waiting for {}: {}", gpu_words(choices), nodes.join(", "))
            }
            Self::NeverGpus { choices, there } => {
                write!(f, "cannot start: needs {}, and no node has that; there are {there}", gpu_words(choices))
            }
            Self::RoomSoon { node } => write!(f, "waiting for containers to stop on node {node}"),
            Self::GivesWay { function, node } => write!(
                f,
                "waiting for its share of node {node}: a container of function {function} gives way when it is done with the inputs that it has"
            ),
            Self::NextPlan => f.write_str("waiting for its turn: many containers are being started"),
        }
    }
}

/// Says why a gang fits on no nodes of this cluster: "4 containers, each 2 cores, 1024 MiB memory, are to run at once; …".
pub fn too_large(size: u32, needs: &Resources, holds: u64) -> String {
    let holds = match holds {
        0 => "have room for none of them".to_owned(),
        holds => format!("have room for {holds} of them"),
    };
    format!("{size} containers, each {}, are to run at once, and all nodes it may run on {holds}, even when empty", each(needs))
}

/// Writes "2 cores, 1024 MiB memory, 1 GPU".
fn each(needs: &Resources) -> String {
    let is_told = [true, true, needs.gpus > 0, needs.disk_bytes > 0];
    parts(needs).into_iter().zip(is_told).filter(|(_, told)| *told).map(|(part, _)| part).collect::<Vec<_>>().join(", ")
}

/// Writes choices as a program does: `gpu="H100:2" or "A100"`.
pub fn gpu_words(choices: &[Request]) -> String {
    let words: Vec<String> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
    format!("gpu={}", words.join(" or "))
}

/// Writes the GPUs that there are: "H100:2, L4", or "none".
pub fn gpus_there(state: &State) -> String {
    let mut counted: Vec<(&String, usize)> = Vec::new();
    for kind in state.gpus.values().flatten() {
        match counted.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => counted.push((kind, 1)),
        }
    }
    let words = counted.iter().map(|(kind, count)| if *count == 1 { (*kind).clone() } else { format!("{kind}:{count}") });
    let words: Vec<String> = words.collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// Writes "needs 64 cores; the largest node has 2 cores", or, when it is only too much for one node all together, what each has.
fn never_fits(f: &mut fmt::Formatter<'_>, needs: &Resources, nodes: &[(String, Resources)]) -> fmt::Result {
    let largest = |of: fn(&Resources) -> u64| nodes.iter().map(|(_, has)| of(has)).max().unwrap_or(0);
    let largest = Resources {
        cpu_milli: u32::try_from(largest(|has| has.cpu_milli.into())).unwrap_or(u32::MAX),
        memory_bytes: largest(|has| has.memory_bytes),
        gpus: u32::try_from(largest(|has| has.gpus.into())).unwrap_or(u32::MAX),
        disk_bytes: largest(disk_of),
        ..Resources::default()
    };
    let (wants, has) = (parts(needs), parts(&largest));
    let too_much = [
        needs.cpu_milli > largest.cpu_milli,
        needs.memory_bytes > largest.memory_bytes,
        needs.gpus > largest.gpus,
        needs.disk_bytes > largest.disk_bytes,
    ];
    let those = |all: &[String]| {
        all.iter().zip(too_much).filter(|(_, too_much)| *too_much).map(|(part, _)| part.clone()).collect::<Vec<_>>().join(" and ")
    };
    if too_much.contains(&true) {
        return write!(f, "cannot start: needs {}; the largest node has {}", those(&wants), those(&has));
    }
    // What is not set aside is not told.
    let told = if needs.disk_bytes > 0 { 4 } else { 3 };
    let each: Vec<String> = nodes.iter().map(|(name, has)| format!("node {name} has {}", parts(has)[..told].join(", "))).collect();
    write!(f, "cannot start: no node has all at once that it needs, {}; {}", wants[..told].join(", "), each.join("; "))
}

fn parts(of: &Resources) -> [String; 4] {
    [cores(of.cpu_milli), format!("{} memory", mebibytes(of.memory_bytes)), gpus(of.gpus), disk(of.disk_bytes)]
}

fn disk(bytes: u64) -> String {
    format!("{} of disk", mebibytes(bytes))
}

fn gpus(count: u32) -> String {
    match count {
        0 => "no GPU".to_owned(),
        1 => "1 GPU".to_owned(),
        count => format!("{count} GPUs"),
    }
}

/// Writes thousandths of a core as cores.
fn cores(milli: u32) -> String {
    let whole = milli / 1000;
    match milli % 1000 {
        0 if whole == 1 => "1 core".to_owned(),
        0 => format!("{whole} cores"),
        rest => format!("{whole}.{} cores", format!("{rest:03}").trim_end_matches('0')),
    }
}

/// Writes "waiting for 2 cores: node n1 has 0.5 cores free".
fn waiting(f: &mut fmt::Formatter<'_>, nodes: &[(String, Obstacle)]) -> fmt::Result {
    let mut wanted: Vec<String> = nodes.iter().filter_map(|(_, obstacle)| obstacle.wanted()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let wanted = if wanted.is_empty() { "a node".to_owned() } else { wanted.join(" and ") };
    let nodes: Vec<String> = nodes.iter().map(|(name, obstacle)| format!("node {name} {obstacle}")).collect();
    write!(f, "waiting for {wanted}: {}", nodes.join(", "))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
