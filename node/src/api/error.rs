//! What goes wrong in an API call, and the one place where it becomes a gRPC code.
//!
//! The code is chosen by the exception that a user should see: clients turn each into a class of its own, and send a
//! call again on UNAVAILABLE, INTERNAL, UNKNOWN, DEADLINE_EXCEEDED and CANCELLED.

use shoal_state::{NotAnId, Refused};
use tonic::{Code, Status};

use super::patience;

/// Longer messages break HTTP/2 headers on the way to some clients. In bytes as encoded for a header.
const MESSAGE_BYTES_MAX: usize = 3000;

/// Why a call was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Something that was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// The request cannot be right, whatever the state.
    #[error("{0}")]
    Invalid(String),
    /// Something of that name is there already.
    #[error("{0}")]
    Exists(String),
    /// The state forbids it now.
    #[error("{0}")]
    Precondition(String),
    /// Nobody showed who they are.
    #[error("{0}")]
    Unauthenticated(String),
    /// Whoever asks may not.
    #[error("{0}")]
    Denied(String),
    /// Too much at once; try again.
    #[error("{0}")]
    Exhausted(String),
    /// May heal; try again.
    #[error("{0}")]
    Unavailable(String),
    /// Heals by itself, and then the same request is answered: clients go on trying, see `patience`.
    #[error("{0}")]
    Heals(String),
    /// What was waited for has not happened yet; ask again.
    #[error("{0}")]
    Late(String),
    /// Shoal cannot do that.
    #[error("{0}")]
    Unimplemented(String),
    /// The state machine said no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The world got in the way.
    #[error("{attempted}")]
    Failed {
        /// What was attempted, on which thing.
        attempted: String,
        /// What stood in the way.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Wraps a failure of the world with what was attempted.
    pub(crate) fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(attempted: impl Into<String>) -> impl FnOnce(E) -> Self {
        let attempted = attempted.into();
        move |source| Self::Failed { attempted, source: source.into() }
    }

    /// Says whether somebody was refused for who they are.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Unauthenticated(_) | Self::Denied(_))
    }

    /// Says whether something that was named is not there.
    pub(crate) fn is_absence(&self) -> bool {
        self.code() == Code::NotFound
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Exists(_) => Code::AlreadyExists,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::Denied(_) => Code::PermissionDenied,
            Self::Exhausted(_) => Code::ResourceExhausted,
            Self::Unavailable(_) | Self::Heals(_) => Code::Unavailable,
            Self::Late(_) => Code::DeadlineExceeded,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Refused(refused) => refused_code(refused),
            Self::Failed { source, .. } if is_full(source.as_ref()) => Code::ResourceExhausted,
            Self::Failed { .. } => Code::Internal,
        }
    }
}

/// Says whether a disk without room is at the bottom of a failure: trying again at once does not help then.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let full = |error: &std::io::Error| matches!(error.kind(), StorageFull | QuotaExceeded);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(full)
            || matches!(error.downcast_ref(), Some(shoal_storage::store::Error::Full { .. }))
        {
            return true;
        }
        // An error that was wrapped to pass as one of the system's shows itself, not its cause.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = inner.map_or_else(|| error.source(), |inner| Some(inner));
    }
    false
}

/// Cuts a message where its encoding gets too long: on the wire, what is not plain ASCII takes three bytes a byte.
fn fit(message: &mut String) {
    let encoded = |c: char| if matches!(c, ' '..='~') && c != '%' { 1 } else { 3 * c.len_utf8() };
    let mut bytes = 0;
    let end = message.char_indices().find(|(_, c)| {
        bytes += encoded(*c);
        bytes > MESSAGE_BYTES_MAX
    });
    if let Some((end, _)) = end {
        message.truncate(end);
    }
}

fn refused_code(refused: &Refused) -> Code {
    match refused {
        Refused::EnvironmentExists { .. }
        | Refused::NameHeld { .. }
        | Refused::SecretExists { .. }
        | Refused::SuffixHeld { .. }
        | Refused::ObjectExists { .. } => Code::AlreadyExists,
        Refused::NoEnvironment { .. }
        | Refused::NoToken { .. }
        | Refused::NoApp { .. }
        | Refused::NoFunction { .. }
        | Refused::NoImage { .. }
        | Refused::NoMount { .. }
        | Refused::NoSuchImage { .. }
        | Refused::NoSecret { .. }
        | Refused::NoNode { .. }
        | Refused::NoTask { .. }
        | Refused::NoRelease { .. }
        | Refused::NoObject { .. } => Code::NotFound,
        _ => Code::FailedPrecondition,
    }
}

impl From<NotAnId> for Error {
    fn from(error: NotAnId) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        fit(&mut message);
        let code = error.code();
        if code == Code::Internal {
            tracing::error!(message, "a call failed");
        }
        if matches!(error, Error::Heals(_)) {
            let policy = patience::policy(code, &message);
            return Status::with_details(code, message, policy);
        }
        Status::new(code, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_fits_into_a_header_whatever_it_is_of() {
        for text in ["x", "é", "%", "\n", "🐟"] {
            let status = Status::from(Error::Invalid(text.repeat(5000)));
            let sent = status.into_http::<()>().headers()["grpc-message"].len();
            assert!((MESSAGE_BYTES_MAX - 12..=MESSAGE_BYTES_MAX).contains(&sent), "{text:?}: {sent} bytes");
        }
        assert_eq!(Status::from(Error::Invalid("short".to_owned())).message(), "short");
    }

    #[test]
    fn a_full_disk_is_told_apart_however_deep_it_is_wrapped() {
        let code = |error: std::io::Error| Status::from(Error::failed("cannot keep it")(error)).code();
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let of_store = shoal_storage::store::Error::Full { dir: "/data".into(), used_percent: 95, limit_percent: 90 };
        assert_eq!(code(full()), Code::ResourceExhausted);
        assert_eq!(code(std::io::Error::other(full())), Code::ResourceExhausted);
        assert_eq!(code(std::io::Error::other(of_store)), Code::ResourceExhausted);
        assert_eq!(code(std::io::ErrorKind::PermissionDenied.into()), Code::Internal);
    }
}
