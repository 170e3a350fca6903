//! Every byte that crosses a socket.
