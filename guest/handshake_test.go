package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

// TestHelloJSON holds what the agent writes by hand against what the host reads.
func TestHelloJSON(t *testing.T) {
	want := Hello{Protocol: 3, Version: "v1 (x)", Kernel: "6.1", Hostname: "a-b", BootID: "0-1",
		Clock: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), PID: 1}
	var got Hello
	if err := json.Unmarshal(want.appendJSON(nil), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	odd := Hello{Hostname: "a\"b\\c\nd\x00é"}
	if err := json.Unmarshal(odd.appendJSON(nil), &got); err != nil || got.Hostname != "abcd" {
		t.Errorf("an odd name became %q, %v", got.Hostname, err)
	}
}
