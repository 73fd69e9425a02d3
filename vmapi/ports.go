package vmapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// A port is how what runs in a machine reaches whoever leased it: the agent listens on the machine's loopback, and the
// connections that are made there come over the connection of the request, which stops being HTTP for that.

const (
	portProtocol = "tgr-port/1"       // of the Upgrade header
	portAddress  = "Tgr-Port-Address" // the answer's header that says where the agent listens
	portConns    = 128                // of one port at once: as many as the agent's client takes
	portWindow   = 1 << 20            // bytes of a connection that each end has room for
	portPing     = 10 * time.Second   // between signs of life
	portQuiet    = 30 * time.Second   // for one write, a sign of life, or the end of a connection that was closed here
	portBuffer   = 128 << 10          // for copies
)

// portMux is the multiplexer of a port's connections. The server opens its streams, and the client accepts them.
func portMux() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	c.AcceptBacklog = portConns
	c.MaxStreamWindowSize = portWindow
	c.KeepAliveInterval = portPing
	c.ConnectionWriteTimeout = portQuiet
	c.StreamOpenTimeout = portQuiet
	c.StreamCloseTimeout = portQuiet
	return c
}

// ports answers POST /api/vms/{id}/ports: it opens a port, and returns when that is no more. A port is for who leased the
// machine, and lives as long as the lease at most.
func (s *Server) ports(w http.ResponseWriter, r *request) error {
	m, err := s.usable(r.PathValue("id"))
	if err != nil {
		return err
	}
	returned, err := m.promised(r.user)
	if err != nil {
		return err
	}
	addr := r.URL.Query().Get("addr")
	if at, err := netip.ParseAddrPort(addr); err != nil || !at.Addr().IsLoopback() {
		return invalid("the parameter addr is %q: expected a loopback address with a port, as 127.0.0.1:0", cut(addr, 64))
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), portProtocol) {
		w.Header().Set("Upgrade", portProtocol)
		return errorf(http.StatusUpgradeRequired, "invalid", "a port needs the header Upgrade: %s; a proxy in between has to pass it on", portProtocol)
	}
	ctx, end := context.WithCancel(m.ctx)
	defer end()
	agent, err := m.client(ctx)
	if err != nil {
		return err
	}
	l, err := agent.Listen(ctx, addr)
	if err != nil {
		return fmt.Errorf("open the port: %w", err)
	}
	defer l.Close()
	stream, err := switchProtocol(r.control, l.Addr().String())
	if err != nil {
		return err
	}
	mux, err := yamux.Client(stream, portMux())
	if err != nil {
		stream.Close()
		return nil // the answer has been sent
	}
	defer mux.Close()
	go func() {
		select {
		case <-mux.CloseChan(): // the client has gone
		case <-returned:
		case <-ctx.Done():
		}
		l.Close()
	}()
	relay(l, mux)
	return nil
}

// promised returns a channel that is closed when the lease of the machine is given back, if it is leased to this user.
func (m *machine) promised(user string) (<-chan struct{}, error) {
	if m.user != user {
		return nil, errorf(http.StatusForbidden, "unauthorized", "%s was made by somebody else, and only who made it may open its ports", m.id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != Leased {
		return nil, errorf(http.StatusConflict, "conflict", "%s is %s: ports are for a machine that is leased", m.id, m.state)
	}
	return m.returned, nil
}

// switchProtocol takes the connection of a request from the server, with an answer that says so.
func switchProtocol(control *http.ResponseController, address string) (io.ReadWriteCloser, error) {
	conn, both, err := control.Hijack()
	if err != nil {
		return nil, fmt.Errorf("the connection cannot carry a port: %w", err)
	}
	conn.SetDeadline(time.Now().Add(portQuiet))
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n\r\n", portProtocol, portAddress, address)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("answer: %w", err)
	}
	conn.SetDeadline(time.Time{})
	return &switched{conn, both.Reader}, nil
}

// switched is a connection that was HTTP's, from where HTTP stopped reading.
type switched struct {
	net.Conn
	r *bufio.Reader
}

// Read reads what the server had read ahead, and then the connection.
func (c *switched) Read(b []byte) (int, error) { return c.r.Read(b) }

// relay carries the connections of l over streams of mux, until either is closed and the connections have ended.
func relay(l net.Listener, mux *yamux.Session) {
	var open sync.WaitGroup
	defer open.Wait()
	defer mux.Close() // ends those that go on
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		open.Go(func() {
			defer conn.Close()
			stream, err := mux.OpenStream()
			if err != nil {
				return
			}
			join(conn, &portConn{Stream: stream})
		})
	}
}

// join copies both ways, and hands on that one side has said all. It returns when both have, or either broke.
func join(a, b net.Conn) {
	defer a.Close()
	defer b.Close()
	var both sync.WaitGroup
	oneWay := func(to, from net.Conn) {
		_, err := io.CopyBuffer(to, from, make([]byte, portBuffer))
		if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		}
		if err != nil {
			past := time.Unix(1, 0) // frees who copies the other way
			a.SetDeadline(past)
			b.SetDeadline(past)
		}
	}
	both.Go(func() { oneWay(a, b) })
	oneWay(b, a)
	both.Wait()
}

// portConn is one connection of a port.
type portConn struct {
	*yamux.Stream
	addr net.Addr // nil: the stream's own
}

// CloseWrite says that no more will be sent; reading goes on.
func (c *portConn) CloseWrite() error { return c.Stream.Close() }

// Close ends the connection in both directions. What was written before still arrives.
func (c *portConn) Close() error {
	err := c.Stream.Close()
	return errors.Join(err, c.Stream.SetReadDeadline(time.Unix(1, 0)))
}

// LocalAddr is the port inside the machine, and so is RemoteAddr: who connected is somebody inside the machine.
func (c *portConn) LocalAddr() net.Addr {
	if c.addr == nil {
		return c.Stream.LocalAddr()
	}
	return c.addr
}

// RemoteAddr is LocalAddr.
func (c *portConn) RemoteAddr() net.Addr { return c.LocalAddr() }
