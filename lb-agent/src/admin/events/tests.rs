use std::{convert::Infallible, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::timeout};

use super::*;

/// An API server that takes every Event, and tells it with its path.
async fn api_server() -> (SocketAddr, mpsc::UnboundedReceiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let tell = tell.clone();
                async move {
                    let path = format!("{} {}", request.method(), request.uri().path());
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    tell.send((path, serde_json::from_slice(&body).unwrap())).unwrap();
                    Ok::<_, Infallible>(Response::new(Full::new(body)))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (addr, told)
}

fn client(addr: SocketAddr) -> Client {
    Client::try_from(kube::Config::new(format!("http://{addr}").parse().unwrap())).unwrap()
}

/// K4, M8.
#[tokio::test]
async fn what_the_api_server_gets() {
    let (addr, mut told) = api_server().await;
    let events = Events::start(client(addr), "node-a");
    events.starting();
    events.service_health_check_failed(&ObjectRef::new("web", "shop"), 30_100, "in use");

    let (path, event) = timeout(Duration::from_secs(10), told.recv()).await.unwrap().unwrap();
    assert_eq!(path, "POST /apis/events.k8s.io/v1/namespaces/default/events");
    assert_eq!(event["regarding"], json!({"kind": "Node", "name": "node-a", "uid": "node-a"}));
    assert_eq!(event["reason"], "Starting");
    assert_eq!(event["action"], "StartSocklb");
    assert_eq!(event["type"], "Normal");
    assert_eq!(event["reportingController"], "socklb");
    assert_eq!(event["reportingInstance"], "node-a");

    let (path, event) = timeout(Duration::from_secs(10), told.recv()).await.unwrap().unwrap();
    assert_eq!(path, "POST /apis/events.k8s.io/v1/namespaces/web/events");
    let regarding =
        json!({"apiVersion": "v1", "kind": "Service", "namespace": "web", "name": "shop"});
    assert_eq!(event["regarding"], regarding);
    assert_eq!(event["reason"], "FailedToStartServiceHealthcheck");
    assert_eq!(event["action"], "Listen");
    assert_eq!(event["type"], "Warning");
    assert_eq!(
        event["note"],
        "node node-a failed to start healthcheck \"web/shop\" on port 30100: in use"
    );
}

/// Nobody takes them: the loop does not notice.
#[tokio::test]
async fn more_than_fit_are_dropped() {
    let (events, mut reports) = Events::queue("node-a");
    for _ in 0..WAITING * 2 {
        events.starting();
    }
    drop(events);
    let mut kept = 0;
    while reports.recv().await.is_some() {
        kept += 1;
    }
    assert_eq!(kept, WAITING);
}

#[tokio::test]
async fn an_api_server_that_is_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let events = Events::start(client(addr), "node-a");
    events.starting();
    tokio::time::sleep(Duration::from_millis(50)).await;
    events.starting();
}

#[test]
fn no_api_server() {
    Events::none().starting();
}

#[test]
fn a_long_note_is_cut_between_characters() {
    let (events, mut reports) = Events::queue("node-a");
    events.service_health_check_failed(&ObjectRef::new("a", "b"), 1, &"ä".repeat(2 * MAX_NOTE));
    let note = reports.try_recv().unwrap().event.note.unwrap();
    assert!((MAX_NOTE - 1..=MAX_NOTE).contains(&note.len()), "{}", note.len());
}
