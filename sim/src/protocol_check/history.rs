//! Whether a history of puts and gets is linearizable, asked of stateright's own tester.

use std::{cell::RefCell, collections::BTreeMap};

use stateright::semantics::{
    ConsistencyTester, LinearizabilityTester,
    register::{Register, RegisterOp, RegisterRet},
};

use super::{
    operation::number,
    state::{OPERATIONS_MAX, State, Status},
};

/// Each operation: those that had returned when it began, a bit each, if it did; and what it
/// returned, if it did.
type History = [(Option<u8>, Option<u8>); OPERATIONS_MAX];

/// True if some order of the operations, each at one instant between its begin and its return,
/// explains what they returned. The first `puts` are puts.
pub(super) fn is_linearizable(puts: usize, state: &State) -> bool {
    thread_local!(static KNOWN: RefCell<BTreeMap<(usize, History), bool>> = RefCell::default());
    let history = std::array::from_fn(|it| {
        let operation = &state.operations[it];
        match operation.status {
            Status::Waiting => (None, None),
            Status::Running(_) | Status::Failed => (Some(operation.after), None),
            Status::Returned(value) => (Some(operation.after), Some(value)),
        }
    });
    KNOWN.with_borrow_mut(|it| *it.entry((puts, history)).or_insert_with(|| check(puts, &history)))
}

/// Each operation is a client of its own; one that has not returned stays in flight.
fn check(puts: usize, history: &History) -> bool {
    let mut tester = LinearizabilityTester::new(Register(0));
    let mut started: Vec<_> =
        (0..OPERATIONS_MAX).filter_map(|it| Some((history[it].0?, it))).collect();
    started.sort_by_key(|it| it.0.count_ones());
    let all = (0..OPERATIONS_MAX).filter(|it| history[*it].1.is_some()).map(|it| 1 << it).sum();
    let mut returned = 0u8;
    let mut finish = |tester: &mut LinearizabilityTester<usize, Register<u8>>, until: u8| {
        for it in (0..OPERATIONS_MAX).filter(|it| until & !returned & 1 << it != 0) {
            let value = history[it].1.expect("it has returned");
            let told = if it < puts { RegisterRet::WriteOk } else { RegisterRet::ReadOk(value) };
            tester.on_return(it, told).expect("it has begun");
        }
        returned |= until;
    };
    for (after, it) in started {
        finish(&mut tester, after);
        let call = if it < puts { RegisterOp::Write(number(it)) } else { RegisterOp::Read };
        tester.on_invoke(it, call).expect("it begins once");
    }
    finish(&mut tester, all);
    tester.is_consistent()
}
