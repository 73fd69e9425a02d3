package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPorts is how many ports the host may have open in a machine at once.
const maxPorts = 16

// openPort listens on a port, and closes it when the host ends the stream.
func (k *callee) openPort(req *request) error {
	addr, err := netip.ParseAddrPort(req.Addr)
	if err != nil || len(req.ID) == 0 || len(req.ID) > maxID {
		return fmt.Errorf("listen on %q: %w: it is no address with a port", clip(req.Addr, 64), ErrRefused)
	}
	if !k.s.cfg.Machine && !addr.Addr().IsLoopback() {
		return fmt.Errorf("listen on %s: %w: the machine is shared, and others would reach the port", addr, ErrRefused)
	}
	l, err := ListenPort(context.Background(), addr)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := k.s.addPort(req.ID, l); err != nil {
		return err
	}
	defer k.s.dropPort(req.ID)
	if err := k.out.send(frame(kStarted, []byte(l.Addr().String()))); err != nil {
		return err
	}
	k.in.next() // returns when the stream ends: the host has nothing more to say
	return nil
}

// ListenPort listens on a TCP address of this host. What a loopback address accepts sends unpaced (tcp(7),
// TCP_CONGESTION): the host's default may be BBR, which keeps to a rate that it guesses, and takes up to twice as long
// where there is no link between the two ends. The caller closes the listener.
func ListenPort(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	var c net.ListenConfig
	if addr.Addr().IsLoopback() {
		c.Control = func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) {
				unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") // every kernel has it; slower without
			})
		}
	}
	l, err := c.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

func (s *Server) addPort(id string, l net.Listener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ports[id] != nil:
		return fmt.Errorf("port %q: %w", id, fs.ErrExist)
	case len(s.ports) >= maxPorts:
		return fmt.Errorf("%w: %d ports are open", ErrRefused, maxPorts)
	}
	s.ports[id] = l
	return nil
}

func (s *Server) dropPort(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, id)
}

// acceptPort waits for the next connection to a port of the host's, and is that connection from then on. The end of the
// port ends the wait.
func (k *callee) acceptPort(req *request) error {
	k.s.mu.Lock()
	l := k.s.ports[req.ID]
	k.s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("port %q: %w", clip(req.ID, maxID), fs.ErrNotExist)
	}
	conn, err := l.Accept()
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	defer conn.Close()
	if err := k.out.send(frame(kStarted, nil)); err != nil {
		return err
	}
	var up sync.WaitGroup
	var failed error
	up.Go(func() {
		if failed = k.upstream(conn); failed != nil {
			conn.Close() // frees who copies the other way
			k.out.stream.SetReadDeadline(time.Unix(1, 0))
		}
	})
	err = k.downstream(conn)
	if err != nil {
		conn.Close()
	}
	up.Wait()
	return errors.Join(failed, err)
}

// upstream sends the host what was written into the connection.
func (k *callee) upstream(conn net.Conn) error {
	buf := make([]byte, headerSize+maxData)
	for {
		n, err := conn.Read(buf[headerSize:])
		if n > 0 {
			header(buf, kData, n)
			if err := k.out.send(buf[:headerSize+n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return k.out.send(frame(kEnd, nil))
		}
		if err != nil {
			return err
		}
	}
}

// downstream writes what the host sends into the connection.
func (k *callee) downstream(conn net.Conn) error {
	r := &dataReader{in: &k.in}
	for {
		if len(r.rest) == 0 {
			if _, err := r.Read(nil); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
		if r.end {
			if c, ok := conn.(*net.TCPConn); ok {
				return c.CloseWrite()
			}
			return nil
		}
		if _, err := conn.Write(r.rest); err != nil {
			return err
		}
		r.rest = nil
	}
}
