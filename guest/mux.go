package guest

import (
	"bufio"
	"context"
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
}

func (c *muxConn) Read(b []byte) (int, error)  { return c.r.Read(b) }
func (c *muxConn) Write(b []byte) (int, error) { return c.conn.Write(b) }

func (c *muxConn) Close() error {
	c.once.Do(func() {
		c.conn.SetDeadline(time.Unix(1, 0))
		c.close()
	})
	return nil
}

// muxConfig is the multiplexer's. The host accepts no streams: a backlog of one bounds what an agent may open.
func muxConfig(host bool) *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	c.KeepAliveInterval = pingEvery
	c.ConnectionWriteTimeout = pingTimeout
	c.MaxStreamWindowSize = 1 << 20
	c.StreamOpenTimeout = silence
	c.StreamCloseTimeout = pingTimeout // then what the other end did not read is thrown away
	if host {
		c.AcceptBacklog = 1
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
