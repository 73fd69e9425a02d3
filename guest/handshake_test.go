package guest

import (
	"bufio"
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// impatient is a host's end of a stream that tells of its second write.
type impatient struct {
	net.Conn
	writes atomic.Int32
	second chan struct{}
}

func (c *impatient) Write(p []byte) (int, error) {
	if c.writes.Add(1) == 2 {
		close(c.second)
	}
	return c.Conn.Write(p)
}

// A host that has asked twice before the agent answers gets two answers, and no buffer is there to hold the second.
func TestHandshakeWithoutBuffer(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	host := &impatient{Conn: ours, second: make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		answered <- answer(ctx, theirs, bufio.NewReader(theirs), false, func() Hello {
			<-host.second
			return Hello{Protocol: Protocol}
		})
	}()
	if _, _, err := greet(ctx, host); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
