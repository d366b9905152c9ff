//! The one place where errors become numbers.

use fuser::Errno;

use crate::reads::ReadError;
use crate::view::Refused;

/// Returns the number for a refusal.
pub(crate) fn refused(refused: Refused) -> Errno {
    Errno::from_i32(match refused {
        Refused::Gone => libc::ESTALE,
        Refused::NotFound | Refused::NotYet => libc::ENOENT,
        Refused::Unfit => libc::EINVAL,
        Refused::NotADirectory => libc::ENOTDIR,
        Refused::NotALink => libc::EINVAL,
        Refused::NotAFile => libc::EISDIR,
        Refused::NoAttribute => libc::ENODATA,
        Refused::AttributeTooLong => libc::ERANGE,
    })
}

/// Returns the number for a read that failed. A program can do nothing about any of the reasons, so all are one.
pub(crate) fn read(error: &ReadError) -> Errno {
    match error {
        ReadError::Source(_)
        | ReadError::Late { .. }
        | ReadError::TooMany { .. }
        | ReadError::Malformed { .. }
        | ReadError::Killed { .. }
        | ReadError::Ending { .. }
        | ReadError::Ended => Errno::EIO,
    }
}

/// Returns the number for what this file system does not do, so that the kernel does not ask again.
pub(crate) fn unsupported() -> Errno {
    Errno::ENOSYS
}
