//! Connections: made to a peer, taken from one, and what comes by them handed to who serves it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;
use shoal_state::NodeId;

use super::{Endpoint, Service};
use crate::admission::Member;
use crate::error::{Error, Result};
use crate::identity::host;
use crate::links::{self, Link};
use crate::stream::Stream;
use crate::{clients, detour, hello, seeds, tls};

/// How long dialling a peer may take, hello included.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// Of how many machines that are no members is known what was last said of them.
const STRANGERS_MAX: u128 = 251;

pub(super) async fn dial(endpoint: Endpoint, node: NodeId, address: String) -> Result<Link> {
    let reached = dial_once(endpoint.clone(), node, address).await;
    match &reached {
        Err(error) if !endpoint.inner.tasks.is_closed() && endpoint.inner.unreached.due(node, &error.to_string()) => {
            tracing::warn!(%node, %error, "a peer is not reached");
        }
        Ok(_) => {
            let (was_unreached, was_around) = (endpoint.inner.unreached.over(node), endpoint.inner.around.over(node));
            if was_unreached || was_around {
                tracing::info!(%node, "a peer is reached again");
            }
        }
        _ => {}
    }
    reached
}

async fn dial_once(endpoint: Endpoint, node: NodeId, address: String) -> Result<Link> {
    let peer = || format!("node {node}");
    let unreachable = |why: String| Error::Unreachable { peer: peer(), address: address.clone(), why };
    let reaching = async {
        let there = links::resolve(&address).await?;
        endpoint.inner.closed.note(node, there);
        let config = endpoint.inner.dialling.read().clone();
        let connecting =
            endpoint.inner.endpoint.connect_with(config, there, &host(node)).map_err(|error| unreachable(error.to_string()))?;
        let connection = connecting.await.map_err(|error| unreachable(links::explain(&error)))?;
        let member = hello::say(&connection, &*endpoint.inner.admission).await.map_err(|error| match error {
            Error::Failed { why, .. } => Error::Refused { peer: peer(), address: address.clone(), why },
            other => unreachable(connection.close_reason().map_or_else(|| other.to_string(), |error| links::explain(&error))),
        })?;
        Ok(Link { connection, member: Arc::new(member) })
    };
    let reached = tokio::time::timeout(DIAL_DEADLINE, reaching).await;
    let link = reached.unwrap_or_else(|_| Err(unreachable(format!("nobody answered within {DIAL_DEADLINE:?}"))))?;
    // The peer may ask on the same connection.
    endpoint.inner.tasks.spawn(streams(endpoint.clone(), link.connection.clone(), Some(link.member.clone())));
    Ok(link)
}

/// Lets peers in until the endpoint is closed.
pub(super) async fn accept(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.inner.endpoint.accept().await {
        endpoint.inner.tasks.spawn(greet(endpoint.clone(), incoming));
    }
}

/// Stands for a machine that is no member where complaints are kept: one of a few, so that many strangers take no more room.
fn stranger(address: IpAddr) -> NodeId {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    NodeId::from_random(u128::from(address) % STRANGERS_MAX)
}

async fn greet(endpoint: Endpoint, incoming: quinn::Incoming) {
    let address = incoming.remote_address();
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%address, %error, "somebody began to connect and did not come through"),
    };
    match tls::protocol_of(&connection).as_deref() {
        Some(tls::JOINING) => return streams(endpoint, connection, None).await,
        Some(tls::CLIENTS) => {
            let serve = endpoint.inner.clients.read().clone();
            return clients::let_in(&connection, serve, endpoint.inner.clients_away.subscribe()).await;
        }
        Some(tls::SEEDING) => {
            let door = endpoint.inner.door.read().clone();
            let known = seeds::answer(&connection, door.as_ref()).await;
            if matches!(known, Ok(false)) && endpoint.inner.refused.due(stranger(address.ip()), &address.ip().to_string()) {
                tracing::warn!(%address, "somebody asked as a seed of this cluster, with another secret");
            }
            return;
        }
        _ => {}
    }
    match hello::hear(&connection, &*endpoint.inner.admission, &endpoint.inner.refused).await {
        Ok(Some(member)) => {
            let link = Link { connection, member: Arc::new(member) };
            endpoint.inner.closed.note(link.member.node, address);
            endpoint.inner.links.accepted(&link);
            streams(endpoint, link.connection, Some(link.member)).await;
        }
        Ok(None) => connection.close(1u32.into(), b"refused"),
        Err(error) => {
            tracing::debug!(%address, %error, "a connection without a hello");
            connection.close(1u32.into(), b"no hello");
        }
    }
}

/// Serves the streams that the other side opens, until the connection ends.
async fn streams(endpoint: Endpoint, connection: Connection, member: Option<Arc<Member>>) {
    while let Ok((send, mut receive)) = connection.accept_bi().await {
        let (endpoint, member, address) = (endpoint.clone(), member.clone(), connection.remote_address());
        let tasks = endpoint.inner.tasks.clone();
        tasks.spawn(async move {
            let number = match &member {
                // Without a certificate there is one thing to ask, and it is not named.
                None => Service::JOIN.number,
                Some(_) => {
                    let mut number = [0];
                    match receive.read_exact(&mut number).await {
                        Ok(()) if number[0] != Service::JOIN.number => number[0],
                        _ => return,
                    }
                }
            };
            let node = member.as_ref().map_or(NodeId::from_random(0), |member| member.node);
            let mut stream = Stream::new(node, address, (send, receive));
            let (mut number, mut member) = (number, member);
            match (number, &member) {
                (detour::ASKED, Some(member)) => return detour::lead_on(endpoint, stream, member.clone()).await,
                (detour::ARRIVED, Some(_)) => match detour::arrive(&*endpoint.inner.admission, &mut stream).await {
                    Ok((origin, address, service)) => {
                        stream = Stream::new(origin.node, address, stream.into_halves());
                        (number, member) = (service, Some(origin));
                    }
                    Err(error) => return tracing::debug!(peer = %node, %error, "a stream through a peer did not arrive"),
                },
                _ => {}
            }
            let serve = endpoint.inner.services.read().get(&number).cloned();
            match serve {
                Some(serve) => serve(stream, member).await,
                // The peer is told; whether it hears is its affair.
                None => drop(stream.fail("this node does not do that yet: it is starting, or older").await),
            }
        });
    }
}
