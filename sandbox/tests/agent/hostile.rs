//! Whatever the agent sends ends in one clear error, soon, and in this sandbox alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use husk_sandbox::agent::event::Kind;
use husk_sandbox::agent::{ContainerStatus, StateResponse};
use husk_sandbox::agent::{
    CreateRequest, CreateResponse, Empty, Event, EventsResponse, Failure, WaitResponse, failure,
};
use husk_sandbox::guest::{Breach, GuestError, ProcessId};
use husk_sandbox::lifecycle::LifecycleError;
use ttrpc::Code;
use ttrpc::proto::{MESSAGE_LENGTH_MAX, MessageHeader};

use super::fake::{Call, Fake, NAME, PATIENCE};

fn process() -> ProcessId {
    ProcessId {
        container: NAME.into(),
        exec: String::new(),
    }
}

/// What the first call fails with when the agent answers it in this way, and that the connection is of no use then.
fn breach_of(answer: impl Fn(Call<'_>) + Send + Sync + 'static) -> Breach {
    let fake = Fake::new(answer);
    let guest = fake.guest(PATIENCE);
    let errors = [guest.state(NAME).unwrap_err(), guest.state(NAME).unwrap_err()];
    let [first, second] = errors.map(|error| match error {
        GuestError::Breach(breach) => breach,
        other => panic!("{other:?}"),
    });
    assert_eq!(first, second);
    first
}

#[test]
fn a_frame_that_is_cut_is_a_lost_agent() {
    let cut = AtomicU64::new(0);
    let fake = Fake::new(move |call| {
        let header = Vec::from(MessageHeader::new_response(call.stream, 100));
        let whole = [header, vec![7; 99]].concat();
        let length = usize::try_from(cut.fetch_add(12, Ordering::SeqCst)).unwrap();
        let Call { socket, .. } = call;
        let _ = std::io::Write::write_all(socket, &whole[..length]);
        let _ = socket.shutdown(std::net::Shutdown::Both);
    });
    for _ in 0..9 {
        let error = fake.guest(PATIENCE).state(NAME).unwrap_err();
        assert!(matches!(error, GuestError::Lost), "{error:?}");
    }
}

#[test]
fn a_frame_that_never_ends_is_not_waited_for_longer_than_any_answer() {
    let fake = Fake::new(|mut call| {
        let header = Vec::from(MessageHeader::new_response(call.stream, 100));
        call.raw(&header);
        call.raw(&[7; 50]);
    });
    let error = fake.guest(Duration::from_millis(200)).state(NAME).unwrap_err();
    assert!(matches!(error, GuestError::Timeout(_)), "{error:?}");
}

#[test]
fn a_message_that_is_too_long_is_not_read() {
    for length in [u32::MAX, u32::try_from(MESSAGE_LENGTH_MAX).unwrap() + 1] {
        let breach = breach_of(move |mut call| {
            let header = Vec::from(MessageHeader::new_response(call.stream, length));
            call.raw(&header);
        });
        assert_eq!(breach, Breach::Long(length));
    }
}

#[test]
fn messages_that_are_no_answers_are_not_taken() {
    // A request, and one of a stream.
    for kind in [1, 3, 0, 255] {
        let breach = breach_of(move |mut call| {
            let mut header = Vec::from(MessageHeader::new_response(call.stream, 0));
            header[8] = kind;
            call.raw(&header);
        });
        assert_eq!(breach, Breach::Type(kind));
    }
}

#[test]
fn an_answer_that_nobody_waits_for_is_not_taken() {
    for stream in [0, 2, 3, u32::MAX] {
        let breach = breach_of(move |mut call| call.answer_to(stream, &[]));
        assert_eq!(breach, Breach::Unasked);
    }
}

#[test]
fn endless_answers_to_nobody_end_with_the_first() {
    let breach = breach_of(|call| {
        let header = Vec::from(MessageHeader::new_response(77, 0));
        while std::io::Write::write_all(call.socket, &header).is_ok() {}
    });
    assert_eq!(breach, Breach::Unasked);
}

#[test]
fn senseless_and_deeply_nested_messages_are_not_understood() {
    // A group in a group in a group, in the response and in the message that it holds.
    for nested in [vec![0x7b; 1 << 20], vec![0xff; 1000]] {
        let payload = nested.clone();
        assert_eq!(
            breach_of(move |mut call| call.answer_to(call.stream, &payload)),
            Breach::Form
        );
        let breach = breach_of(move |mut call| {
            let length = u32::try_from(nested.len()).unwrap();
            let header = Vec::from(MessageHeader::new_response(call.stream, length));
            call.raw(&header);
            call.raw(&nested);
        });
        assert_eq!(breach, Breach::Form);
    }
}

#[test]
fn words_of_the_guest_are_short_and_clean_in_errors() {
    let words = format!("\x1b]0;owned\x07{}", "x".repeat(1 << 20));
    let refusal = words.clone();
    let fake = Fake::new(move |mut call| match call.request.method.as_str() {
        "Create" => call.answer(&CreateResponse {
            failure: Some(Failure {
                kind: failure::Kind::OTHER.into(),
                message: words.clone(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }),
        _ => call.refuse(Code::INTERNAL, &refusal),
    });
    let guest = fake.guest(PATIENCE);
    let errors = [
        guest.state(NAME).unwrap_err(),
        guest.create(&CreateRequest::default()).unwrap_err(),
    ];
    for error in errors.map(|error| error.to_string()) {
        assert!(error.contains("owned"), "{error}");
        assert!(error.len() < 3000 && !error.contains(char::is_control));
    }
}

#[test]
fn a_wait_that_is_answered_twice_is_answered_once() {
    let fake = Fake::new(|mut call| {
        let exit = WaitResponse {
            status: 7,
            ..Default::default()
        };
        call.answer(&exit);
        call.answer(&exit);
    });
    let guest = fake.guest(PATIENCE);
    assert_eq!(guest.wait(&process()).unwrap().status, 7);
    let error = guest.state(NAME).unwrap_err();
    assert!(matches!(error, GuestError::Breach(Breach::Unasked)), "{error:?}");
}

#[test]
fn a_wait_that_is_never_answered_holds_up_nothing_else() {
    let fake = Fake::new(|mut call| match call.request.method.as_str() {
        "Wait" => {}
        "Shutdown" => drop(call.socket.shutdown(std::net::Shutdown::Both)),
        _ => call.answer(&Empty::default()),
    });
    let guest = fake.guest(PATIENCE);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.wait(&process()));
        guest.kill(&process(), 15, false).unwrap();
        assert!(!waiting.is_finished());
        // Its connection's end is the wait's.
        guest.shutdown().unwrap_err();
        assert!(matches!(waiting.join().unwrap(), Err(GuestError::Lost)));
    });
}

#[test]
fn events_that_were_not_asked_for_end_the_connection() {
    let event = |sequence| Event {
        sequence,
        kind: Kind::OOM.into(),
        ..Default::default()
    };
    for events in [vec![], vec![event(6), event(5)]] {
        let fake = Fake::new(move |mut call| {
            call.answer(&EventsResponse {
                events: events.clone(),
                ..Default::default()
            });
        });
        let error = fake.guest(PATIENCE).events(5).unwrap_err();
        assert!(matches!(error, GuestError::Breach(Breach::Events)), "{error:?}");
    }
}

#[test]
fn a_container_goes_although_its_guest_only_says_so() {
    let stopped = || StateResponse {
        status: ContainerStatus::CONTAINER_STOPPED.into(),
        ..Default::default()
    };
    let fake = Fake::new(move |mut call| match call.request.method.as_str() {
        "State" => call.answer(&stopped()),
        _ => call.answer(&Empty::default()),
    });
    let patience = Duration::from_millis(300);
    let error = fake.container(patience).delete(&fake.root, false).unwrap_err();
    assert!(matches!(error, LifecycleError::Alive { .. }), "{error:?}");
    assert!(fake.stopped.try_recv().is_err());
    fake.container(patience).delete(&fake.root, true).unwrap();
    fake.stopped.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn another_sandbox_does_not_notice() {
    let sound = Fake::new(|mut call| {
        call.answer(&WaitResponse {
            status: 3,
            ..Default::default()
        });
    });
    let guest = sound.guest(PATIENCE);
    assert_eq!(breach_of(|mut call| call.answer_to(99, &[])), Breach::Unasked);
    assert_eq!(guest.wait(&process()).unwrap().status, 3);
}
