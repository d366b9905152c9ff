//! How a state is written: field after field, each version of the rules its own at the end.
//!
//! A snapshot must be readable by every build that knows the version it is of. So the version comes first, and what a
//! later version added is written, and looked for, only from that version on.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeTuple as _, Serializer};

use super::State;

/// Lists the fields in the order in which they are written, after the version of the rules that added them.
macro_rules! layout {
    ($($since:literal: $($field:ident),+;)+) => {
        impl State {
            const FIELDS: usize = 1 $($(+ { let _ = stringify!($field); 1 })+)+;
        }

        impl Serialize for State {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut out = serializer.serialize_tuple(Self::FIELDS)?;
                out.serialize_element(&self.version)?;
                $(if self.version() >= $since {
                    $(out.serialize_element(&self.$field)?;)+
                })+
                out.end()
            }
        }

        impl<'de> Visitor<'de> for Reader {
            type Value = State;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the fields of a state, its version first")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<State, A::Error> {
                let absent = |name| A::Error::custom(format_args!("the state ends before its {name}"));
                let version = fields.next_element()?.ok_or_else(|| absent("version"))?;
                let mut state = State { version, ..State::default() };
                $(if state.version() >= $since {
                    $(state.$field = fields.next_element()?.ok_or_else(|| absent(stringify!($field)))?;)+
                })+
                state.name_objects();
                Ok(state)
            }
        }
    };
}

layout! {
    1: environments, tokens, apps, deployed, functions, classes, images, layers, mounts, named_mounts, secrets, nodes, shards,
       tasks, tasks_of, settings;
    2: app_notes, staged, releases, environment_settings, secret_notes;
    3: cluster, members, removed, tokens_used;
    4: voting;
    5: bound, objects;
    6: schedules, staged_schedules, firings, sandboxes;
    7: gangs, gang_of, gpus;
}

struct Reader;

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(Self::FIELDS, Reader)
    }
}
