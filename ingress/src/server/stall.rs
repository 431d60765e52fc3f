//! Answers over HTTP/2 that a client does not take.
//!
//! A connection tells only whether its bytes are taken, and a client can take those and still leave no room for
//! the data of a stream. Such an answer keeps its backend's connection, and nobody looks at its body: so each
//! stream is looked after from outside.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::rt::Executor;
use tokio::time::{Instant, sleep_until};

use super::stream::STALL;

tokio::task_local! {
    static TAKING: Arc<Taking>;
}

/// Since when a part of an answer is there and nobody has come for the next one.
#[derive(Debug, Default)]
struct Taking(Mutex<Option<Instant>>);

impl Taking {
    fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until that was too long ago.
    async fn stalled(&self) {
        loop {
            sleep_until(self.since().unwrap_or_else(Instant::now) + STALL).await;
            if self.since().is_some_and(|since| since.elapsed() >= STALL) {
                return;
            }
        }
    }
}

/// The body of the answer that this task sends was asked for its next part; `given`: it had one.
pub(crate) fn asked(given: bool) {
    // Over HTTP/1 nobody looks.
    let _ = TAKING.try_with(|taking| {
        *taking.0.lock().unwrap_or_else(PoisonError::into_inner) = given.then(Instant::now);
    });
}

/// Runs streams, and drops those that stall, which resets them.
#[derive(Clone, Debug)]
pub(crate) struct Streams;

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let taking = Arc::new(Taking::default());
        tokio::spawn(TAKING.scope(Arc::clone(&taking), async move {
            tokio::select! {
                biased;
                () = stream => {}
                () = taking.stalled() => {}
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use http_body_util::Empty;
    use hyper::body::{Bytes, Incoming};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::sync::{mpsc, oneshot};
    use tokio::time::timeout;

    use super::*;
    use crate::answer::Answer;

    // Where nobody has anything to do, time passes by itself.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_is_reset() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (say, mut said) = mpsc::unbounded_channel();
        let service = service_fn(move |_: Request<Incoming>| {
            let (there, gone) = oneshot::channel::<()>();
            say.send(gone).unwrap();
            let mut answer = Answer::own("x".repeat(4000));
            // In four parts.
            answer.pace(4000, 4000);
            answer.hold(Arc::new(there));
            async move { Ok::<_, Infallible>(Response::new(answer)) }
        });
        let builder = hyper::server::conn::http2::Builder::new(Streams);
        tokio::spawn(builder.serve_connection(TokioIo::new(server), service));
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(10);
        let (mut client, connection) = builder.handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        let request = || Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap();
        let begun = Instant::now();
        let _unread = client.send_request(request()).await.unwrap();
        let gone = said.recv().await.unwrap();
        assert!(timeout(2 * STALL, gone).await.expect("dropped").is_err());
        assert!(begun.elapsed() >= STALL);
        // The connection goes on.
        client.send_request(request()).await.unwrap();
    }
}
