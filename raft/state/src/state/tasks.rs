//! Tasks: what their nodes have for them, and how they stop and end.

use imbl::OrdSet;

use super::{Applied, State};
use crate::model::{AppState, Task, TaskEnd};
use crate::{Event, NodeId, Refused, TaskId};

/// From this version of the rules on, disk that tasks set aside is counted.
const DISK_SINCE: u32 = 7;

impl State {
    pub(super) fn assign(&mut self, id: TaskId, task: &Task) -> Applied {
        if self.tasks.contains_key(&id) {
            return Ok(vec![]);
        }
        let function = self.functions.get(&task.function).ok_or(Refused::NoFunction { id: task.function })?;
        match self.apps.get(&task.app) {
            None => return Err(Refused::NoApp { id: task.app }),
            Some(app) if app.state == AppState::Stopped => return Err(Refused::AppStopped { id: task.app }),
            Some(_) => {}
        }
        let containers_max = function.scaling.containers_max;
        let running = self.tasks_of.get(&task.function).map_or(0, OrdSet::len);
        if containers_max > 0 && running >= usize::try_from(containers_max).unwrap_or(usize::MAX) {
            return Err(Refused::ContainersMax { task: id, function: task.function, containers_max });
        }
        self.fits(id, task)?;
        self.tasks.insert(id, task.clone());
        self.tasks_of.entry(task.function).or_default().insert(id);
        Ok(vec![Event::TasksChanged(task.node)])
    }

    /// Refuses a task that asks for what its node has not, or has given away.
    fn fits(&self, id: TaskId, task: &Task) -> Result<(), Refused> {
        let node = self.nodes.get(&task.node).ok_or(Refused::NoNode { id: task.node })?;
        if node.draining {
            return Err(Refused::NodeDrains { task: id, node: task.node });
        }
        if node.boot != task.boot {
            return Err(Refused::OtherBoot { task: id, node: task.node });
        }
        let (free_cpu_milli, free_memory_bytes) = self.free(task.node);
        if task.resources.cpu_milli > free_cpu_milli || task.resources.memory_bytes > free_memory_bytes {
            return Err(Refused::NodeFull { task: id, node: task.node, free_cpu_milli, free_memory_bytes });
        }
        if self.version() >= DISK_SINCE {
            let free_bytes = self.free_disk(task.node);
            if task.resources.disk_bytes > free_bytes {
                return Err(Refused::DiskHeld { task: id, node: task.node, free_bytes });
            }
        }
        for gpu in &task.gpus {
            if *gpu >= node.capacity.gpus {
                return Err(Refused::NoGpu { task: id, node: task.node, gpu: *gpu });
            }
            if let Some((holder, _)) = self.tasks.iter().find(|(_, held)| held.node == task.node && held.gpus.contains(gpu)) {
                return Err(Refused::GpuHeld { task: id, node: task.node, gpu: *gpu, holder: *holder });
            }
        }
        Ok(())
    }

    pub(super) fn stop_task(&mut self, id: TaskId, why: &str) -> Applied {
        let mut events = self.stop_alone(id, why)?;
        for other in self.others_of(id) {
            events.extend(self.stop_alone(other, why)?);
        }
        Ok(events)
    }

    pub(super) fn stop_alone(&mut self, id: TaskId, why: &str) -> Applied {
        let task = self.tasks.get_mut(&id).ok_or(Refused::NoTask { id })?;
        if task.stopping.is_some() {
            return Ok(vec![]);
        }
        task.stopping = Some(why.to_owned());
        Ok(vec![Event::TasksChanged(task.node)])
    }

    pub(super) fn end_task(&mut self, id: TaskId, generation: u64, end: &TaskEnd) -> Applied {
        let task = self.tasks.get(&id).ok_or(Refused::NoTask { id })?;
        if task.generation != generation {
            return Err(Refused::OldGeneration { id, generation, current: task.generation });
        }
        let (function, node, app) = (task.function, task.node, task.app);
        self.tasks.remove(&id);
        if let Some(tasks) = self.tasks_of.get_mut(&function) {
            tasks.remove(&id);
            if tasks.is_empty() {
                self.tasks_of.remove(&function);
            }
        }
        self.sandbox_task_ended(function, end);
        let mut events = vec![Event::TasksChanged(node)];
        events.extend(self.gang_task_ended(id, &end.how));
        self.forget_if_homeless(app);
        Ok(events)
    }

    /// Returns the CPU (thousandths of a core) and the memory (bytes) of a node that no task holds.
    pub fn free(&self, node: NodeId) -> (u32, u64) {
        let Some(capacity) = self.nodes.get(&node).map(|node| node.capacity) else { return (0, 0) };
        let held = self.tasks.values().filter(|task| task.node == node);
        held.fold((capacity.cpu_milli, capacity.memory_bytes), |(cpu, memory), task| {
            (cpu.saturating_sub(task.resources.cpu_milli), memory.saturating_sub(task.resources.memory_bytes))
        })
    }

    /// Returns the disk of a node that no task has set aside, in bytes; as much as there can be for a node that has not said how much
    /// it has.
    pub fn free_disk(&self, node: NodeId) -> u64 {
        let Some(capacity) = self.nodes.get(&node).map(|node| node.capacity.disk_bytes) else { return 0 };
        if capacity == 0 {
            return u64::MAX;
        }
        let held = self.tasks.values().filter(|task| task.node == node).map(|task| task.resources.disk_bytes);
        held.fold(capacity, u64::saturating_sub)
    }
}
