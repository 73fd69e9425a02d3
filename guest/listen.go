package guest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// maxForwards is how many connections of one port may be open at once; more wait in the guest's own backlog. Each
// may fill a window of the host's memory with what nobody reads.
const maxForwards = 128

// portListener accepts, on the host, what connects to a port inside the machine: the port belongs to this machine alone, so
// a connection says by itself which machine it comes from. It is safe for concurrent use.
type portListener struct {
	c     *Client
	id    string
	addr  forwardAddr
	slots chan struct{}   // a token for each connection that is open
	ctx   context.Context // lives until Close
	close context.CancelFunc
}

var _ net.Listener = (*portListener)(nil)

// Listen has the agent listen on a TCP address of the machine, such as 127.0.0.1:0 for any free port of its loopback,
// and hands over every connection made to it. An agent that shares its machine with others refuses any address but a
// loopback one, with ErrRefused. The port is closed with the listener, with the stream to the agent, and when ctx ends.
func (c *Client) Listen(ctx context.Context, addr string) (net.Listener, error) {
	req := &request{Op: opListen, ID: rand.Text(), Addr: addr}
	ctx, cancel := context.WithCancel(ctx)
	k, err := c.begin(ctx, req, false)
	if err != nil {
		cancel()
		return nil, err
	}
	l := &portListener{c: c, id: req.ID, slots: make(chan struct{}, maxForwards), ctx: ctx, close: cancel}
	kind, b, err := k.next()
	if err == nil && kind != kStarted {
		err = k.unexpected(kind)
	}
	if err == nil {
		l.addr, err = parseForwardAddr(b)
	}
	if err != nil {
		cancel()
		k.end()
		return nil, err
	}
	c.work.Go(func() {
		defer k.end()
		defer cancel()
		k.next() // passes over beats, which come while the port is open: it returns when that is no more
	})
	return l, nil
}

// Accept returns the next connection. After Close, and when the stream to the agent is lost, it fails with an error that
// matches net.ErrClosed.
func (l *portListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.ctx.Done():
		return nil, l.closed(l.ctx.Err())
	}
	f, err := l.accept()
	if err != nil {
		<-l.slots
		return nil, l.closed(err)
	}
	return f, nil
}

func (l *portListener) accept() (*forward, error) {
	k, err := l.c.begin(l.ctx, &request{Op: opAccept, ID: l.id}, false)
	if err != nil {
		return nil, err
	}
	kind, _, err := k.next()
	if err == nil && kind != kStarted {
		err = k.unexpected(kind)
	}
	if err == nil && !k.stop() { // from here on the connection is on its own
		err = l.ctx.Err()
	}
	if err != nil {
		k.end()
		return nil, err
	}
	k.stream.SetDeadline(time.Time{})
	return &forward{l: l, stream: k.stream}, nil
}

// closed is what Accept says of an error: that of a closed listener, which it now is.
func (l *portListener) closed(err error) error {
	l.close()
	return fmt.Errorf("accept from the machine: %w: %w", net.ErrClosed, err)
}

// Close closes the port. Connections that were accepted go on. It is idempotent.
func (l *portListener) Close() error {
	l.close()
	return nil
}

// Addr is the address inside the machine.
func (l *portListener) Addr() net.Addr { return l.addr }

// forwardAddr is an address inside a machine, in the words of the agent, host and port.
type forwardAddr string

func (forwardAddr) Network() string  { return "tcp" }
func (a forwardAddr) String() string { return string(a) }

// parseForwardAddr reads the address that the agent listens on. It goes into the job's environment, and must not hold
// anything but an address.
func parseForwardAddr(b []byte) (forwardAddr, error) {
	a, err := netip.ParseAddrPort(string(b))
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" || a.String() != string(b) {
		return "", fmt.Errorf("listen: %w: %q is no address", ErrProtocol, clip(string(b), 64))
	}
	return forwardAddr(b), nil
}

// forward is the host's end of a connection that was made inside the machine.
type forward struct {
	l      *portListener
	stream net.Conn
	once   sync.Once

	reading sync.Mutex
	hdr     [headerSize]byte
	got     int // bytes of hdr
	rest    int // bytes of the data frame that is being read
	end     bool

	writing sync.Mutex
	buf     []byte
	ended   bool // kEnd was sent
}

var (
	_ io.ReaderFrom                   = (*forward)(nil)
	_ interface{ CloseWrite() error } = (*forward)(nil)
)

// Read reads what was sent into the port. A deadline that passes loses nothing.
func (f *forward) Read(b []byte) (int, error) {
	f.reading.Lock()
	defer f.reading.Unlock()
	for f.rest == 0 {
		if f.end {
			return 0, io.EOF
		}
		if err := f.header(); err != nil {
			return 0, f.wrap(err)
		}
	}
	if len(b) == 0 {
		return 0, nil
	}
	n, err := f.stream.Read(b[:min(len(b), f.rest)])
	f.rest -= n
	switch {
	case n > 0:
		err = nil
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, f.wrap(err)
}

// header reads the head of the next frame, from where a deadline may have cut it off.
func (f *forward) header() error {
	for f.got < headerSize {
		n, err := f.stream.Read(f.hdr[f.got:])
		f.got += n
		if err != nil && f.got < headerSize {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // the end of a connection is a frame of its own
			}
			return err
		}
	}
	f.got = 0
	k, n := kind(f.hdr[0]), binary.BigEndian.Uint32(f.hdr[1:])
	switch {
	case k == kData && n <= maxData:
		f.rest = int(n)
		return nil
	case k == kBeat && n == 0:
		return nil
	case k == kEnd && n == 0:
		f.end = true
		return nil
	case k == kError && n <= maxReply:
		return errReset
	}
	f.stream.Close()
	return fmt.Errorf("%w: frame %d of %d bytes in a connection", ErrProtocol, k, n)
}

// errReset is a connection that broke inside the machine.
var errReset = errors.New("the connection inside the machine broke")

func (f *forward) wrap(err error) error {
	if err == nil {
		return nil
	}
	if t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok && t.Timeout() {
		return &net.OpError{Op: "forward", Net: "tcp", Addr: f.l.addr, Err: os.ErrDeadlineExceeded}
	}
	return &net.OpError{Op: "forward", Net: "tcp", Addr: f.l.addr, Err: err}
}

// Write sends to who connected to the port.
func (f *forward) Write(b []byte) (int, error) {
	f.writing.Lock()
	defer f.writing.Unlock()
	total := 0
	for len(b) > 0 {
		f.room()
		n := copy(f.buf[headerSize:], b)
		if err := f.send(n); err != nil {
			return total, err
		}
		total, b = total+n, b[n:]
	}
	return total, nil
}

// ReadFrom sends all of r, with one copy less than Write.
func (f *forward) ReadFrom(r io.Reader) (total int64, err error) {
	f.writing.Lock()
	defer f.writing.Unlock()
	f.room()
	for {
		n, err := r.Read(f.buf[headerSize:])
		if n > 0 {
			if err := f.send(n); err != nil {
				return total, err
			}
			total += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (f *forward) room() {
	if f.buf == nil {
		f.buf = make([]byte, headerSize+maxData)
	}
}

// send sends the first n bytes of the buffer's data.
func (f *forward) send(n int) error {
	if f.ended {
		return f.wrap(net.ErrClosed)
	}
	header(f.buf, kData, n)
	_, err := f.stream.Write(f.buf[:headerSize+n])
	return f.wrap(err)
}

// CloseWrite says that no more will be sent; reading goes on.
func (f *forward) CloseWrite() error {
	f.writing.Lock()
	defer f.writing.Unlock()
	if f.ended {
		return nil
	}
	f.ended = true
	_, err := f.stream.Write(frame(kEnd, nil))
	return f.wrap(err)
}

// Close ends the connection in both directions. What was written before still arrives.
func (f *forward) Close() error {
	f.once.Do(func() {
		f.stream.Close()
		<-f.l.slots
	})
	return nil
}

// LocalAddr is the port inside the machine.
func (f *forward) LocalAddr() net.Addr { return f.l.addr }

// RemoteAddr is the same: who connected is somebody inside the machine.
func (f *forward) RemoteAddr() net.Addr { return f.l.addr }

// SetDeadline is net.Conn's.
func (f *forward) SetDeadline(t time.Time) error { return f.stream.SetDeadline(t) }

// SetReadDeadline is net.Conn's.
func (f *forward) SetReadDeadline(t time.Time) error { return f.stream.SetReadDeadline(t) }

// SetWriteDeadline is net.Conn's.
func (f *forward) SetWriteDeadline(t time.Time) error { return f.stream.SetWriteDeadline(t) }
