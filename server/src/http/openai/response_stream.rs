//! The events of a response as it comes.

use millpond::engine::FinishReason;
use serde_json::{Value, json};

use super::responses::{Shape, call_item, finished, message_item, reasoning_item, text_part};
use crate::http::answer::Call;
use crate::http::assemble::AnswerWriter;
use crate::http::error::ApiError;
use crate::http::ids;
use crate::http::sse::{Gone, Sender};
use crate::http::usage::Totals;

/// The item that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    Reasoning { id: String, text: String },
    Message { id: String, text: String },
}

/// Writes the events.
pub(super) struct Writer {
    sender: Sender,
    shape: Shape,
    open: Open,
    output: Vec<Value>,
    sequence: u64,
}

impl Writer {
    pub(super) fn new(sender: Sender, shape: Shape) -> Writer {
        Writer { sender, shape, open: Open::Nothing, output: Vec::new(), sequence: 0 }
    }

    async fn event(&mut self, kind: &str, mut value: Value) -> Result<(), Gone> {
        value["type"] = kind.into();
        value["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        self.sender.event(kind, &value).await
    }

    async fn finish(&mut self, reason: &FinishReason, totals: &Totals) -> Result<(), Gone> {
        if self.output.is_empty() && self.open == Open::Nothing {
            self.begin_message().await?;
        }
        self.close().await?;
        let output = std::mem::take(&mut self.output);
        let response = finished(self.shape.frame.clone(), output, reason, totals);
        let kind = if *reason == FinishReason::Length { "response.incomplete" } else { "response.completed" };
        self.event(kind, json!({ "response": response })).await
    }

    async fn begin_message(&mut self) -> Result<(), Gone> {
        let id = ids::unique("msg_");
        self.added(message_item(&id, "in_progress", &[])).await?;
        let part = json!({
            "item_id": id, "output_index": self.output.len(), "content_index": 0, "part": text_part(""),
        });
        self.event("response.content_part.added", part).await?;
        self.open = Open::Message { id, text: String::new() };
        Ok(())
    }

    async fn added(&mut self, item: Value) -> Result<(), Gone> {
        let place = json!({ "output_index": self.output.len(), "item": item });
        self.event("response.output_item.added", place).await
    }

    /// Ends an item.
    async fn done(&mut self, item: Value) -> Result<(), Gone> {
        let place = json!({ "output_index": self.output.len(), "item": item });
        self.output.push(item);
        self.event("response.output_item.done", place).await
    }

    async fn close(&mut self) -> Result<(), Gone> {
        let place =
            |id: &str, output: usize| json!({ "item_id": id, "output_index": output, "content_index": 0 });
        match std::mem::replace(&mut self.open, Open::Nothing) {
            Open::Nothing => Ok(()),
            Open::Reasoning { id, text } => {
                let mut value = place(&id, self.output.len());
                value["text"] = text.as_str().into();
                self.event("response.reasoning_text.done", value).await?;
                self.done(reasoning_item(&id, &text)).await
            }
            Open::Message { id, text } => {
                let mut value = place(&id, self.output.len());
                value["text"] = text.as_str().into();
                value["logprobs"] = json!([]);
                self.event("response.output_text.done", value).await?;
                let mut value = place(&id, self.output.len());
                value["part"] = text_part(&text);
                self.event("response.content_part.done", value).await?;
                self.done(message_item(&id, "completed", &[text_part(&text)])).await
            }
        }
    }
}

impl AnswerWriter for Writer {
    fn sender(&self) -> &Sender {
        &self.sender
    }

    async fn begin(&mut self) -> Result<(), Gone> {
        let frame = self.shape.frame.clone();
        self.event("response.created", json!({ "response": frame })).await?;
        self.event("response.in_progress", json!({ "response": frame })).await
    }

    async fn reasoning(&mut self, more: &str) -> Result<(), Gone> {
        if !matches!(self.open, Open::Reasoning { .. }) {
            self.close().await?;
            let id = ids::unique("rs_");
            let item = json!({ "type": "reasoning", "id": id, "summary": [], "content": [] });
            self.added(item).await?;
            self.open = Open::Reasoning { id, text: String::new() };
        }
        if let Open::Reasoning { id, text } = &mut self.open {
            text.push_str(more);
            let place = json!({
                "item_id": id, "output_index": self.output.len(), "content_index": 0, "delta": more,
            });
            self.event("response.reasoning_text.delta", place).await?;
        }
        Ok(())
    }

    async fn text(&mut self, more: &str) -> Result<(), Gone> {
        if !matches!(self.open, Open::Message { .. }) {
            self.close().await?;
            self.begin_message().await?;
        }
        if let Open::Message { id, text } = &mut self.open {
            text.push_str(more);
            let place = json!({
                "item_id": id, "output_index": self.output.len(), "content_index": 0, "delta": more, "logprobs": [],
            });
            self.event("response.output_text.delta", place).await?;
        }
        Ok(())
    }

    async fn call(&mut self, call: &Call) -> Result<(), Gone> {
        self.close().await?;
        let id = ids::unique("fc_");
        let mut begun = call_item(&id, call, "in_progress");
        begun["arguments"] = "".into();
        self.added(begun).await?;
        let arguments = call.arguments.to_string();
        let output = self.output.len();
        let delta = json!({ "item_id": id, "output_index": output, "delta": arguments });
        self.event("response.function_call_arguments.delta", delta).await?;
        let done =
            json!({ "item_id": id, "output_index": output, "name": call.name, "arguments": arguments });
        self.event("response.function_call_arguments.done", done).await?;
        self.done(call_item(&id, call, "completed")).await
    }

    async fn end(&mut self, reason: &FinishReason, _calls: usize, totals: &Totals) -> Result<(), Gone> {
        self.finish(reason, totals).await
    }

    async fn failed(&mut self, error: &ApiError) -> Result<(), Gone> {
        let mut frame = self.shape.frame.clone();
        frame["status"] = "failed".into();
        frame["error"] = json!({ "code": "server_error", "message": error.openai()["error"]["message"] });
        self.event("response.failed", json!({ "response": frame })).await
    }
}
