//! The handshake: who is there, which tenant, which keys from now on.

use std::rc::Rc;

use memkv_net::{Connection, PayloadRef, SendOp, push};
use memkv_wire::handshake::{ClientHello, Limits, ServerHello};
use memkv_wire::{
    FrameError, Header, MAX_INLINE, Opener, Sealer, Side, Status, VERSION, handshake,
};

use crate::context::Proof;
use crate::input::{Input, InputError};
use crate::{Context, SessionLimits};

/// What a handshake established.
pub struct Connected {
    pub sealer: Sealer,
    pub opener: Opener,
    /// The client's id, the same on all its connections.
    pub client: u128,
    pub proof: Proof,
    pub limits: SessionLimits,
    pub namespace: String,
    /// It says how much it has taken of what it was lent.
    pub counts_lent: bool,
    /// Windows that it was told of, in which it may read.
    pub windows: u32,
    /// It was told that it may name what it puts.
    pub names_puts: bool,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection ended or broke.
    #[error("no whole Connect frame came")]
    Input(#[from] InputError),
    /// The frame is not acceptable: wrong key, wrong version, not a frame at all.
    #[error("the Connect frame is refused")]
    Frame(#[from] FrameError),
    /// The meta is not a client's hello.
    #[error("the Connect meta is refused")]
    Meta(#[from] memkv_wire::MetaError),
    /// No key with this id.
    #[error("key id {0} is not known here")]
    UnknownKey(u32),
    /// No version in common.
    #[error("the client speaks versions {min} to {max}, this server {VERSION}")]
    Version {
        /// The oldest the client speaks.
        min: u8,
        /// The newest.
        max: u8,
    },
    /// The reply could not be sent.
    #[error("the reply could not be sent")]
    Reply(#[source] memkv_net::NetError),
}

/// Reads Connect, checks it, answers.
///
/// A frame whose MAC is wrong gets no answer: there is no key to seal one with. A good client with
/// an old version or a bad name gets a sealed refusal.
pub async fn connect(
    context: &Rc<Context>,
    connection: &Rc<dyn Connection>,
    input: &mut Input,
) -> Result<Connected, ConnectError> {
    let raw = input.header().await?;
    let peeked = handshake::peek_connect(&raw)?;
    let meta = input.bytes(peeked.meta_length() as usize).await?;
    // The key id is in the meta that it authenticates: read first, believed only after the MAC.
    let hello = ClientHello::parse(&meta)?;
    let proof = find_key(context, hello.key_id)?;
    let (mut sealer, mut opener) = handshake::connect_keys(&proof.key, hello.key_id, Side::Server);
    let header = opener.open(&raw, &meta)?;
    let Some(version) = hello.negotiate() else {
        refuse(connection, &mut sealer, &header, Status::UnsupportedVersion).await?;
        return Err(ConnectError::Version { min: hello.version_min, max: hello.version_max });
    };
    let mut server_nonce = [0; 32];
    (context.entropy)(&mut server_nonce);
    let limits = context.limits();
    // A window is for who counts what it has taken, on this machine.
    let near = hello.reads_windows && hello.counts_lent && connection.is_loopback();
    let door = context.door().filter(|_| near);
    let reply = server_hello(context, &limits, &hello, server_nonce, version);
    let takes_staged = door.is_some() && context.stagings.is_some();
    let reply = ServerHello { door, takes_staged, ..reply };
    let mut encoded = Vec::new();
    reply.encode(&mut encoded);
    let reply = Header::reply(&header, Status::Ok).with_credits(limits.credits);
    send(connection, &mut sealer, reply, &encoded).await?;
    let (sealer, opener) = handshake::session_keys(
        &proof.key,
        hello.key_id,
        version,
        &hello.client_nonce,
        &server_nonce,
        Side::Server,
    );
    Ok(Connected {
        sealer,
        opener,
        client: u128::from_le_bytes(hello.client_id),
        proof,
        limits,
        namespace: hello.namespace.to_owned(),
        counts_lent: hello.counts_lent,
        windows: door.map_or(0, |door| door.windows),
        names_puts: takes_staged,
    })
}

fn find_key(context: &Context, id: u32) -> Result<Proof, ConnectError> {
    let keys = context.keys.borrow();
    let (key, tenant) = keys.find(id).ok_or(ConnectError::UnknownKey(id))?;
    Ok(Proof { id, key: key.clone(), tenant: tenant.clone() })
}

fn server_hello(
    context: &Context,
    limits: &SessionLimits,
    hello: &ClientHello<'_>,
    server_nonce: [u8; 32],
    version: u8,
) -> ServerHello {
    let extent = context.store.config().extent_bytes;
    let most = u64::from(extent) * memkv_wire::MAX_EXTENTS as u64;
    ServerHello {
        server_nonce,
        client_nonce: hello.client_nonce,
        server_id: context.identity.server,
        incarnation: context.identity.incarnation,
        namespace: 1,
        version,
        limits: Limits {
            max_value: most.min(limits.value),
            max_inline: MAX_INLINE,
            credits: limits.credits,
            max_items: limits.items,
            max_requests: limits.requests,
            lease_ms_max: u32::try_from(limits.lease.as_millis()).unwrap_or(u32::MAX),
            extent,
        },
        payload_with_offer: true,
        answers_presence: true,
        door: None,
        takes_staged: false,
    }
}

async fn refuse(
    connection: &Rc<dyn Connection>,
    sealer: &mut Sealer,
    request: &Header,
    status: Status,
) -> Result<(), ConnectError> {
    send(connection, sealer, Header::reply(request, status), &[]).await
}

async fn send(
    connection: &Rc<dyn Connection>,
    sealer: &mut Sealer,
    mut header: Header,
    meta: &[u8],
) -> Result<(), ConnectError> {
    let mut head = Vec::new();
    sealer.seal(&mut header, meta, &mut head);
    let (result, _) = push(&**connection, PayloadRef::Inline, SendOp::head(head)).await;
    result.map_err(ConnectError::Reply)
}
