//! One answer put together: whole, or piece by piece as an API's events. Chat completions, which give several answers at
//! once, do it themselves.

use millpond::engine::{Event, FinishReason};

use super::answer::{Answer, AnswerReader, Call, Piece};
use super::error::{ApiError, ApiResult};
use super::events::Events;
use super::sse::{Gone, Sender};
use super::usage::Totals;

/// A whole answer.
pub(crate) struct Whole {
    pub(crate) answer: Answer,
    pub(crate) reason: FinishReason,
    pub(crate) totals: Totals,
}

/// Waits for the whole answer.
///
/// # Errors
/// Why there is none.
pub(crate) async fn collect(mut events: Events, mut reader: AnswerReader) -> ApiResult<Whole> {
    let mut whole =
        Whole { answer: Answer::default(), reason: FinishReason::Cancelled, totals: Totals::default() };
    while let Some((_, event)) = events.next().await {
        match event {
            Event::Token { text, .. } => whole.answer.add(reader.push(&text)),
            Event::Done { reason, text, usage } => {
                whole.answer.add(reader.push(&text));
                whole.answer.add(reader.finish());
                whole.totals.add(&usage, false);
                whole.reason = reason;
            }
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(whole)
}

/// How an API writes an answer that comes in pieces.
pub(crate) trait AnswerWriter: Send + Sync {
    /// Where it is written to.
    fn sender(&self) -> &Sender;
    /// Before the first piece.
    fn begin(&mut self) -> impl Future<Output = Result<(), Gone>> + Send;
    /// What the model thinks.
    fn reasoning(&mut self, text: &str) -> impl Future<Output = Result<(), Gone>> + Send;
    /// What it says.
    fn text(&mut self, text: &str) -> impl Future<Output = Result<(), Gone>> + Send;
    /// A tool it calls.
    fn call(&mut self, call: &Call) -> impl Future<Output = Result<(), Gone>> + Send;
    /// The end, after `calls` calls.
    fn end(
        &mut self,
        reason: &FinishReason,
        calls: usize,
        totals: &Totals,
    ) -> impl Future<Output = Result<(), Gone>> + Send;
    /// The end, for want of a way to go on.
    fn failed(&mut self, error: &ApiError) -> impl Future<Output = Result<(), Gone>> + Send;
}

/// Writes an answer as it comes.
///
/// # Errors
/// The client has gone.
pub(crate) async fn write(
    mut writer: impl AnswerWriter,
    mut reader: AnswerReader,
    mut events: Events,
) -> Result<(), Gone> {
    writer.begin().await?;
    while let Some((_, event)) = writer.sender().next(&mut events).await? {
        match event {
            Event::Token { text, .. } => pieces(&mut writer, reader.push(&text)).await?,
            Event::Done { reason, text, usage } => {
                pieces(&mut writer, reader.push(&text)).await?;
                pieces(&mut writer, reader.finish()).await?;
                let mut totals = Totals::default();
                totals.add(&usage, false);
                writer.end(&reason, reader.calls(), &totals).await?;
            }
            Event::Error(error) => return writer.failed(&error.into()).await,
            _ => {}
        }
    }
    Ok(())
}

async fn pieces(writer: &mut impl AnswerWriter, pieces: Vec<Piece>) -> Result<(), Gone> {
    for piece in pieces {
        match piece {
            Piece::Reasoning(text) => writer.reasoning(&text).await?,
            Piece::Text(text) => writer.text(&text).await?,
            Piece::Call(call) => writer.call(&call).await?,
        }
    }
    Ok(())
}
