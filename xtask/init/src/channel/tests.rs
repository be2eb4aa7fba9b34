use proptest::prelude::*;

use super::*;

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Stdin), Just(Stream::Stdout), Just(Stream::Stderr)]
}

fn window_size() -> impl Strategy<Value = WindowSize> {
    any::<(u16, u16)>().prop_map(|(rows, columns)| WindowSize { rows, columns })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..40)
}

fn start() -> impl Strategy<Value = Start> {
    let share = (prop::option::of("[a-z0-9]{1,8}"), bytes()).prop_map(|(tag, path)| Share { tag, path });
    (
        prop::collection::vec(bytes(), 1..4),
        prop::collection::vec(bytes(), 0..4),
        bytes(),
        bytes(),
        prop::collection::vec(share, 0..4),
        prop::option::of(window_size()),
    )
        .prop_map(|(command, environment, directory, modules, shares, terminal)| Start {
            command,
            environment,
            directory,
            modules,
            shares,
            terminal,
        })
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        start().prop_map(Frame::Start),
        (stream(), bytes()).prop_map(|(stream, bytes)| Frame::Data(stream, bytes)),
        Just(Frame::EndOfInput),
        (stream(), any::<u32>()).prop_map(|(stream, bytes)| Frame::Credit(stream, bytes)),
        stream().prop_map(Frame::Close),
        window_size().prop_map(Frame::Resize),
        any::<i32>().prop_map(Frame::Signal),
        Just(Frame::Booted),
        Just(Frame::Started),
        any::<i32>().prop_map(Frame::Exit),
        any::<String>().prop_map(Frame::Failed),
    ]
}

fn decode_all(wire: &[u8], piece: usize) -> Result<Vec<Frame>, ChannelError> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in wire.chunks(piece) {
        decoder.push(piece);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

proptest! {
    #[test]
    fn frames_arrive_as_sent_in_pieces_of_any_size(frames in prop::collection::vec(frame(), 0..12), piece in 1usize..200) {
        let mut wire = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut wire));
        prop_assert_eq!(decode_all(&wire, piece).unwrap(), frames);
    }

    #[test]
    fn noise_is_refused_or_incomplete_but_never_a_panic(wire in prop::collection::vec(any::<u8>(), 0..400), piece in 1usize..200) {
        let _ = decode_all(&wire, piece);
    }

    #[test]
    fn noise_in_a_start_is_no_panic(noise in bytes()) {
        let mut wire = vec![START];
        wire.extend(u32::try_from(noise.len()).unwrap().to_le_bytes());
        wire.extend(&noise);
        let _ = decode_all(&wire, wire.len());
    }
}

#[test]
fn a_frame_of_unknown_type_is_refused() {
    assert_eq!(decode_all(&[200, 0, 0, 0, 0], 5), Err(ChannelError::UnknownType(200)));
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_its_bytes_arrive() {
    let refused = decode_all(&[STDIN, 1, 0, 128, 0], 5);
    assert_eq!(
        refused,
        Err(ChannelError::TooLong {
            kind: STDIN,
            length: 0x80_0001
        })
    );
}

#[test]
fn a_piece_of_a_stream_beyond_the_chunk_size_is_refused() {
    let mut wire = Vec::new();
    Frame::Data(Stream::Stdout, vec![0; CHUNK + 1]).encode(&mut wire);
    assert_eq!(decode_all(&wire, wire.len()), Err(ChannelError::BadPayload(STDOUT)));
}

#[test]
fn a_start_without_a_command_is_refused() {
    let start = Start {
        command: Vec::new(),
        environment: Vec::new(),
        directory: b"/".to_vec(),
        modules: b"/".to_vec(),
        shares: Vec::new(),
        terminal: None,
    };
    let mut wire = Vec::new();
    Frame::Start(start).encode(&mut wire);
    assert_eq!(decode_all(&wire, wire.len()), Err(ChannelError::BadPayload(START)));
}
