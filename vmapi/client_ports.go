package vmapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/hashicorp/yamux"

	"github.com/terraphim/tgr/guest"
)

// Listen has the machine listen on a loopback address of its own, such as 127.0.0.1:0 for any free port, and hands over
// every connection made to it, as the agent's client does. The machine has to be leased by who listens. A server that has
// no ports is an error that matches errors.ErrUnsupported. The port is closed with the listener, with the lease, with
// the connection to the server, and when ctx ends.
func (m *Machine) Listen(ctx context.Context, addr string) (net.Listener, error) {
	has, err := m.c.has(ctx, FeaturePorts)
	if err != nil {
		return nil, err
	}
	if !has {
		return nil, unsupported("the VM API at %s opens no ports in its machines", m.c.base.Host)
	}
	answer, stream, err := m.c.upgrade(ctx, call{method: "POST", path: vmPath(m.id, "ports"), query: url.Values{"addr": {addr}}}, portProtocol)
	if err != nil {
		return nil, fmt.Errorf("open a port: %w", err)
	}
	// The address goes into the environment of a job, and must not hold anything but an address.
	at, err := netip.ParseAddrPort(answer.Header.Get(portAddress))
	if err != nil || at.Port() == 0 || !at.Addr().IsLoopback() || at.Addr().Zone() != "" {
		stream.Close()
		return nil, fmt.Errorf("open a port: %w: %q is no address of a port", guest.ErrProtocol, clip(answer.Header.Get(portAddress), 64))
	}
	mux, err := yamux.Server(stream, portMux())
	if err != nil {
		stream.Close()
		return nil, fmt.Errorf("open a port: %w", err)
	}
	l := &portListener{mux: mux, addr: net.TCPAddrFromAddrPort(at)}
	l.stop = context.AfterFunc(ctx, func() { mux.Close() })
	return l, nil
}

// upgrade sends a request that makes another protocol of its connection, and returns that. The caller closes it.
func (c *Client) upgrade(ctx context.Context, k call, protocol string) (*http.Response, io.ReadWriteCloser, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callWithin, fmt.Errorf("the VM API did not answer within %v", callWithin))
	defer cancel()
	k.upgrade = protocol
	answer, err := c.send(ctx, k)
	if err != nil {
		return nil, nil, err
	}
	stream, ok := answer.Body.(io.ReadWriteCloser)
	if answer.StatusCode != http.StatusSwitchingProtocols || !ok {
		answer.Body.Close()
		return nil, nil, fmt.Errorf("the VM API: %s %s: %s where the protocol should have changed; a proxy in between has to pass Upgrade on", k.method, k.path, answer.Status)
	}
	return answer, stream, nil
}

// portListener accepts what connects to a port inside a machine. It is safe for concurrent use.
type portListener struct {
	mux  *yamux.Session
	addr net.Addr
	stop func() bool
}

var _ net.Listener = (*portListener)(nil)

// Accept returns the next connection. After Close, and when the port is no more, it fails with an error that matches
// net.ErrClosed.
func (l *portListener) Accept() (net.Conn, error) {
	stream, err := l.mux.AcceptStream()
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("accept from the machine: %w: %w", net.ErrClosed, err)
	}
	return &portConn{stream, l.addr}, nil
}

// Close closes the port and its connections. It is idempotent.
func (l *portListener) Close() error {
	l.stop()
	if err := l.mux.Close(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Addr is the address inside the machine.
func (l *portListener) Addr() net.Addr { return l.addr }
