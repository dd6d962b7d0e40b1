//! A byte stream in WebSocket messages: bytes arrive unchanged, however they are cut into messages.

use std::io;

use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use retunnel_link::{MessageSocket, message_form};
use retunnel_proto::limits::MAX_LINK_MESSAGE;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_websockets::{ClientBuilder, Config, Message, ServerBuilder, WebSocketStream};

fn client(io: DuplexStream, config: Config) -> WebSocketStream<DuplexStream> {
    ClientBuilder::new().config(config).take_over(io)
}

fn server(io: DuplexStream) -> MessageSocket<DuplexStream> {
    let (config, limits) = message_form();
    MessageSocket::new(ServerBuilder::new().config(config).limits(limits).serve(io))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn bytes_arrive_unchanged_in_both_directions(
        bytes in prop::collection::vec(any::<u8>(), 0..200_000),
        step in 1_usize..100_000,
        room in 1_usize..40_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (near, far) = tokio::io::duplex(room);
            let mut near = MessageSocket::new(client(near, message_form().0));
            let mut far = server(far);
            let there = async {
                for piece in bytes.chunks(step) {
                    near.write_all(piece).await.unwrap();
                }
                near.shutdown().await.unwrap();
                let mut back = Vec::new();
                near.read_to_end(&mut back).await.unwrap();
                back
            };
            let and_back = async {
                let mut all = Vec::new();
                far.read_to_end(&mut all).await.unwrap();
                far.shutdown().await.unwrap();
                all
            };
            let (back, all) = tokio::join!(there, and_back);
            assert_eq!(all, bytes);
            assert!(back.is_empty());
        });
    }
}

#[tokio::test]
async fn fragments_are_put_together_and_pings_answered() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let mut far = server(far);
    let mut near = client(near, Config::default().frame_size(7));
    let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    near.send(Message::binary(bytes[..5000].to_vec())).await.unwrap();
    near.send(Message::ping("here?")).await.unwrap();
    near.send(Message::binary(Vec::new())).await.unwrap();
    near.send(Message::binary(bytes[5000..].to_vec())).await.unwrap();
    let mut read = vec![0; bytes.len()];
    far.read_exact(&mut read).await.unwrap();
    assert_eq!(read, bytes);
    far.write_all(b"answer").await.unwrap();
    let pong = near.next().await.unwrap().unwrap();
    assert!(pong.is_pong() && pong.as_payload()[..] == *b"here?", "{pong:?}");
    assert_eq!(near.next().await.unwrap().unwrap().as_payload()[..], *b"answer");
    // A close message of one side ends both directions.
    near.send(Message::close(None, "")).await.unwrap();
    assert_eq!(far.read(&mut read).await.unwrap(), 0);
}

#[tokio::test]
async fn messages_that_are_too_long_or_text_end_the_connection() {
    for message in [Message::binary(vec![0; MAX_LINK_MESSAGE + 1]), Message::text("text")] {
        let (near, far) = tokio::io::duplex(1 << 20);
        let mut far = server(far);
        let mut near = client(near, Config::default());
        near.send(message).await.unwrap();
        let error = far.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}
