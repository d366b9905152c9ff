//! What goes wrong in an API call, and the one place where it becomes a gRPC code.
//!
//! The code is chosen by the exception that a user should see: clients turn each into a class of its own, and send a
//! call again on UNAVAILABLE, INTERNAL, UNKNOWN, DEADLINE_EXCEEDED and CANCELLED.

use shoal_state::{NotAnId, Refused};
use tonic::{Code, Status};

/// Longer messages break HTTP/2 headers on the way to some clients.
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
    /// Will heal; try again.
    #[error("{0}")]
    Unavailable(String),
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

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Exists(_) => Code::AlreadyExists,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::Denied(_) => Code::PermissionDenied,
            Self::Exhausted(_) => Code::ResourceExhausted,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Refused(refused) => refused_code(refused),
            Self::Failed { .. } => Code::Internal,
        }
    }
}

fn refused_code(refused: &Refused) -> Code {
    match refused {
        Refused::EnvironmentExists { .. } | Refused::NameHeld { .. } => Code::AlreadyExists,
        Refused::NoEnvironment { .. }
        | Refused::NoToken { .. }
        | Refused::NoApp { .. }
        | Refused::NoFunction { .. }
        | Refused::NoImage { .. }
        | Refused::NoMount { .. }
        | Refused::NoSecret { .. }
        | Refused::NoNode { .. }
        | Refused::NoTask { .. } => Code::NotFound,
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
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_BYTES_MAX) {
            message.truncate(end);
        }
        let code = error.code();
        if code == Code::Internal {
            tracing::error!(message, "a call failed");
        }
        Status::new(code, message)
    }
}
        | Refused::NoSuchImage { .. }
