//! Whether all bytes of a direction were seen, told by the positions of TCP's
//! streams. Bias: only what two reads of one counter prove; a connection whose
//! birth was not seen is never taken for a fresh one.
//!
//! A position is `write_seq` (sent) or `copied_seq` (received): the sequence
//! number behind the last byte that a call of this side moved. When a call ends,
//! its bytes began at the position less their number, and that must be where the
//! last call of the direction ended, or, for the first one, where the connection
//! began. Each direction is compared with its own counter alone, so that what the
//! other does meanwhile, acknowledgements included, can't be mistaken.

use crate::connection::{Connection, Flow, Shared, flow_flag, phase};

/// Positions when a connection became established: nothing was moved before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Birth {
    /// `copied_seq`
    pub received: u32,
    /// `write_seq`
    pub sent: u32,
}

/// First sight of a connection. `birth` is known if it was born in sight; `began` says where
/// this call's bytes began in their direction and where the other direction stands. Returns
/// whether nothing was moved before in either direction.
///
/// Where the other direction stands elsewhere than it began, its bytes were moved unseen or
/// are those of a call that has not been reported yet: its own first call tells which.
#[inline(always)]
pub fn first(connection: &mut Connection, birth: Option<Birth>, began: Birth) -> bool {
    let phase = if birth.is_some() { phase::START } else { phase::LOST };
    connection.flows[0].phase = phase;
    connection.flows[1].phase = phase;
    let Some(birth) = birth else { return false };
    connection.flows[0].sequence = birth.received;
    connection.flows[1].sequence = birth.sent;
    connection.flows[0].flags = flow_flag::SEQUENCE;
    connection.flows[1].flags = flow_flag::SEQUENCE;
    birth.received == began.received && birth.sent == began.sent
}

/// A call moved `moved` bytes, after which the direction stands at `position`. `ended` is asked
/// only when one byte is missing: whether a FIN, which takes a number of its own, was consumed or sent.
/// False: bytes went by unseen.
#[inline(always)]
pub fn follow(shared: &mut Shared, flow: &mut Flow, position: u32, moved: u32, ended: impl FnOnce() -> bool) -> bool {
    let began = position.wrapping_sub(moved);
    let expected = flow.sequence;
    let known = flow.flags & flow_flag::SEQUENCE != 0;
    flow.sequence = position;
    flow.flags |= flow_flag::SEQUENCE;
    if !known || began == expected {
        return true;
    }
    let lost = began.wrapping_sub(expected);
    if lost == 1 && ended() {
        return true;
    }
    if flow.phase == phase::START {
        shared.origin = 0;
    }
    if lost < 1 << 31 {
        missed(flow, lost);
    } else {
        lose(flow);
    }
    false
}

/// The framing of this direction is in doubt from here on.
#[inline(always)]
pub fn lose(flow: &mut Flow) {
    flow.flags |= flow_flag::GAP;
    flow.phase = phase::LOST;
    flow.have = 0;
}

/// `n` bytes went by unseen: no harm where nobody needed them.
#[inline(always)]
pub fn missed(flow: &mut Flow, n: u32) {
    match flow.phase {
        phase::SKIP if n < flow.need => flow.need -= n,
        phase::DATA if n < flow.need && (flow.message.state == 1 || n <= flow.message.left) => {
            flow.need -= n;
            if flow.message.state != 1 {
                flow.message.left -= n;
            }
        }
        phase::HTTP1_BODY | phase::HTTP1_CHUNK_DATA if u64::from(n) < flow.http1.left => {
            flow.http1.left -= u64::from(n);
            flow.http1.body += u64::from(n);
        }
        phase::HTTP1_CLOSE => flow.http1.body += u64::from(n),
        phase::DEAD => {}
        _ => lose(flow),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIVED: usize = 0;
    const SENT: usize = 1;
    const BIRTH: Birth = Birth {
        received: u32::MAX - 9,
        sent: 500,
    };

    fn call(connection: &mut Connection, way: usize, position: u32, moved: u32) -> bool {
        let flow = &mut connection.flows[way];
        follow(&mut connection.shared, flow, position, moved, || false)
    }

    #[test]
    fn born_in_sight_and_nothing_moved_is_fresh_also_where_numbers_wrap() {
        let mut connection = Connection::EMPTY;
        assert!(first(&mut connection, Some(BIRTH), BIRTH));
        assert_eq!(connection.flows[SENT].phase, phase::START);
        assert!(call(&mut connection, RECEIVED, 14, 24));
        assert!(call(&mut connection, SENT, 530, 30));
        assert!(call(&mut connection, SENT, 535, 5));
    }

    #[test]
    fn a_connection_older_than_the_agent_is_not_fresh() {
        let mut connection = Connection::EMPTY;
        assert!(!first(&mut connection, None, BIRTH));
        assert_eq!(connection.flows[SENT].phase, phase::LOST);
        assert_eq!(connection.flows[RECEIVED].phase, phase::LOST);
    }

    /// A receive is reported while another thread's first send is done and not yet reported.
    #[test]
    fn a_call_under_way_in_the_other_direction_costs_nothing() {
        let mut connection = Connection::EMPTY;
        let began = Birth { sent: 540, ..BIRTH };
        assert!(!first(&mut connection, Some(BIRTH), began));
        assert!(call(&mut connection, RECEIVED, BIRTH.received.wrapping_add(9), 9));
        assert!(call(&mut connection, SENT, 540, 40), "its own first call proves it");
        assert_eq!(connection.flows[SENT].phase, phase::START);
    }

    #[test]
    fn bytes_moved_before_the_process_was_watched_are_missed() {
        let mut connection = Connection::EMPTY;
        connection.shared.origin = 1;
        let began = Birth { sent: 540, ..BIRTH };
        first(&mut connection, Some(BIRTH), began);
        assert!(!call(&mut connection, SENT, 550, 10));
        assert_eq!(connection.flows[SENT].phase, phase::LOST);
        assert_ne!(connection.flows[SENT].flags & flow_flag::GAP, 0);
        assert_eq!(connection.shared.origin, 0);
    }

    #[test]
    fn unseen_bytes_of_a_message_do_no_harm_and_others_do() {
        let mut flow = Flow {
            phase: phase::DATA,
            need: 100,
            ..Flow::EMPTY
        };
        flow.message.left = 90;
        missed(&mut flow, 90);
        assert_eq!((flow.phase, flow.need, flow.message.left), (phase::DATA, 10, 0));
        missed(&mut flow, 5);
        assert_eq!(flow.phase, phase::LOST);
        assert_ne!(flow.flags & flow_flag::GAP, 0);
    }

    #[test]
    fn a_fin_is_no_gap() {
        let mut flow = Flow {
            sequence: 10,
            flags: flow_flag::SEQUENCE,
            ..Flow::EMPTY
        };
        let mut shared = Shared::EMPTY;
        assert!(follow(&mut shared, &mut flow, 31, 20, || true));
        flow.sequence = 10;
        assert!(!follow(&mut shared, &mut flow, 31, 20, || false));
    }
}
