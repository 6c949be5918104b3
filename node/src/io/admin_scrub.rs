//! What the administration interface tells of the scrub, and the passes that it asks for.

use std::time::Duration;

use proto::{CallError, Reason, v1};
use tonic::metadata::MetadataMap;

use super::{
    admin::AdminApi,
    admin_exchange::{Asked, LOOK_INTERVAL},
    call::Call,
};
use crate::scrub::ScrubReport;

impl AdminApi {
    pub(super) async fn scrub_now(
        &self,
        metadata: &MetadataMap,
        request: v1::ScrubRequest,
    ) -> Result<v1::ScrubResponse, CallError> {
        let call = Call::admit(&self.io, metadata, 0)?;
        let mut deadline_us = call.deadline_us;
        if let Some(wait_ms) = request.wait_ms {
            deadline_us = deadline_us.min(self.io.now_us() + u64::from(wait_ms) * 1_000);
        }
        let (shared, board) = (&self.io.shared, &self.io.shared.scrub);
        let incarnation = shared.identity.incarnation;
        let mut asked = Asked { incarnation, number: 0 };
        if !request.pass.is_empty() {
            asked = Asked::decode(&request.pass).ok_or_else(|| {
                let message = "the pass is none that this version has given";
                CallError::new(Reason::InvalidField, message).at_field("pass")
            })?;
        }
        if request.pass.is_empty() || asked.incarnation != incarnation {
            // A start of the node ends its passes: they begin anew.
            asked = Asked { incarnation, number: board.ask() };
        }
        loop {
            let state = board.state();
            let done = state.answered >= asked.number;
            let left_us = deadline_us.saturating_sub(self.io.now_us());
            if done || left_us == 0 {
                let report = if done { state.asked_for } else { state.running };
                let report = report.map(report_message);
                return Ok(v1::ScrubResponse { done, pass: asked.encode(), report });
            }
            tokio::time::sleep(LOOK_INTERVAL.min(Duration::from_micros(left_us))).await;
        }
    }

    pub(super) fn scrub_status(&self) -> v1::ScrubStatus {
        let state = self.io.shared.scrub.state();
        v1::ScrubStatus {
            ended_ms: Some(state.ended_ms).filter(|it| *it > 0),
            last: state.last.map(report_message),
            running: state.running.map(report_message),
            records_damaged: self.io.shared.damage.count(),
        }
    }
}

fn report_message(it: ScrubReport) -> v1::ScrubReport {
    v1::ScrubReport {
        partitions: it.partitions,
        leaves: it.leaves,
        records: it.records,
        bytes: it.bytes,
        mismatches: it.mismatches,
        damaged: it.damaged,
        unreadable: it.unreadable,
        leaves_unreadable: it.leaves_unreadable,
    }
}
