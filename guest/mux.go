package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// muxConn is what the multiplexer runs on: the reader that the handshake left, and the stream. Closing it frees
// who reads and who writes; the stream itself is closed only where close says so.
type muxConn struct {
	r     *bufio.Reader
	conn  net.Conn
	once  sync.Once
	close func()

	// Write's, which one goroutine of the multiplexer calls.
	held []byte // of what is to be written
	body bool   // a header was written whose body comes next
}

func (c *muxConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// Headers of the multiplexer: version, type, two bytes of flags, four of the stream, four of a length.
const (
	muxHeader    = 12
	muxTypeData  = 0
	muxTypeGrant = 1 // opens and accepts streams, and grants window
	muxFlagSYN   = 1
	muxFlagACK   = 2
)

// Write holds back what is certain to be followed by more: a header by its body, the opening of a stream by its
// request, the acceptance by an answer or a beat. The system calls of a small operation are what it costs.
func (c *muxConn) Write(b []byte) (int, error) {
	hold := false
	if !c.body && len(b) == muxHeader {
		flags, length := binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[8:])
		c.body = b[1] == muxTypeData && length > 0
		hold = c.body || b[1] == muxTypeGrant && (flags == muxFlagSYN || flags == muxFlagACK)
	} else {
		c.body = false
	}
	if hold {
		c.held = append(c.held, b...)
		return len(b), nil
	}
	if len(c.held) == 0 {
		return c.conn.Write(b)
	}
	var err error
	if _, local := c.conn.(*net.UnixConn); local && len(b) >= worthGathering {
		_, err = (&net.Buffers{c.held, b}).WriteTo(c.conn)
	} else {
		c.held = append(c.held, b...)
		_, err = c.conn.Write(c.held)
	}
	c.held = c.held[:0]
	return len(b), err
}

// worthGathering is how many bytes cost more to copy than to hand over as a second piece, where the kernel takes pieces.
const worthGathering = 16 << 10

func (c *muxConn) Close() error {
	c.once.Do(func() {
		c.conn.SetDeadline(time.Unix(1, 0))
		c.close()
	})
	return nil
}

// muxWindow is how many bytes of an operation each end has room for. The multiplexer's initial window is a quarter of it,
// and too little for a connection to a port on a busy machine. That the agent grants more is held back with its acceptance,
// so that an operation whose data the host sends unasked has to be answered by a beat first.
const muxWindow = 1 << 20

// hostBacklog is how many operations the host may have begun that the agent has not yet noticed; an agent that
// opens streams fills the memory of no more before it is cut off.
const hostBacklog = 64

// muxConfig is the multiplexer's.
func muxConfig(host bool) *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	c.KeepAliveInterval = pingEvery
	c.ConnectionWriteTimeout = pingTimeout
	c.StreamOpenTimeout = silence
	c.StreamCloseTimeout = pingTimeout // then what the other end did not read is thrown away
	c.MaxStreamWindowSize = muxWindow
	if host {
		c.AcceptBacklog = hostBacklog
	}
	return c
}

// sender writes whole frames to a stream, one at a time.
type sender struct {
	mu     sync.Mutex
	stream net.Conn
	within time.Duration   // for each write; 0: no bound
	done   <-chan struct{} // nothing is sent when it is closed; may be nil
}

func (s *sender) send(frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.within > 0 {
		s.stream.SetWriteDeadline(time.Now().Add(s.within))
	}
	select {
	case <-s.done: // its end set a deadline, which may be the one just overwritten
		return context.Canceled
	default:
	}
	_, err := s.stream.Write(frame)
	return err
}
