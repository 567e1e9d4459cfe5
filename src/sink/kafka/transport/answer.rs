//! What a thread answers to who waits for it. A panic on the thread goes on in the task that waits, which tells of it as of its own:
//! without its text, which may hold a row's value. Never turns one into an error that may pass.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tokio::sync::oneshot;

use crate::model::Retry;
use crate::sink::SinkError;

/// Why a thread does nothing more.
pub(super) enum Failure {
    Error(SinkError),
    Panic(Box<dyn Any + Send>),
}

/// Does some work of the thread. What it leaves behind after a failure is good only for being given up.
pub(super) fn attempt<T>(work: impl FnOnce() -> Result<T, SinkError>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Failure::Error),
        Err(panic) => Err(Failure::Panic(panic)),
    }
}

/// The thread's end.
pub(super) struct Answer<T>(oneshot::Sender<Result<T, Failure>>);

/// The waiting end.
pub(super) struct Wait<T>(oneshot::Receiver<Result<T, Failure>>);

pub(super) fn awaited<T>() -> (Answer<T>, Wait<T>) {
    let (sender, receiver) = oneshot::channel();
    (Answer(sender), Wait(receiver))
}

impl<T> Answer<T> {
    /// True: it failed, or nobody waits any more, and nothing more will be done.
    pub(super) fn give(self, result: Result<T, Failure>) -> bool {
        let is_failure = result.is_err();
        self.0.send(result).is_err() || is_failure
    }
}

impl<T> Wait<T> {
    /// # Panics
    /// As the thread did.
    pub(super) async fn given(self) -> Result<T, SinkError> {
        match self.0.await {
            Ok(Ok(given)) => Ok(given),
            Ok(Err(Failure::Error(error))) => Err(error),
            Ok(Err(Failure::Panic(panic))) => resume_unwind(panic),
            Err(_) => Err(ended()),
        }
    }
}

/// Told to who comes too late: the reason was the answer to an earlier order.
pub(super) fn ended() -> SinkError {
    broken_down("it ended without a word".to_owned())
}

pub(super) fn broken_down(reason: String) -> SinkError {
    SinkError::Kafka { context: "the Kafka client's thread".to_owned(), source: reason.into(), retry: Retry::Later }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn breaks() -> Result<(), SinkError> {
        panic!("secret")
    }

    #[tokio::test]
    async fn a_panic_on_the_thread_goes_on_where_it_is_waited_for() {
        let (answer, wait) = awaited();
        let is_over = std::thread::spawn(move || answer.give(attempt(breaks))).join().unwrap();
        assert!(is_over);
        let panic = AssertUnwindSafe(wait.given()).catch_unwind().await.unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"secret"));
    }

    #[tokio::test]
    async fn an_answer_says_whether_the_thread_goes_on() {
        let failed = || Err(SinkError::Refused("no".to_owned()));
        for (result, is_over, expected) in [(Ok(7), false, Ok(7)), (failed(), true, Err("no".to_owned()))] {
            let (answer, wait) = awaited();
            assert_eq!(answer.give(attempt(|| result)), is_over);
            assert_eq!(wait.given().await.map_err(|error| error.to_string()), expected);
        }
        let (answer, wait) = awaited();
        drop(wait);
        assert!(answer.give(Ok(7)), "nobody waits");
        let (answer, wait) = awaited::<u64>();
        drop(answer);
        assert!(wait.given().await.is_err());
    }
}
