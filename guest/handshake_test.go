package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
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
		answered <- answer(ctx, theirs, bufio.NewReader(theirs), false, func() []byte {
			<-host.second
			return helloOf(Hello{Protocol: Protocol})()
		})
	}()
	if _, _, err := greet(ctx, host); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// helloOf is what an agent that says h passes to answer.
func helloOf(h Hello) func() []byte {
	b, err := json.Marshal(h)
	if err != nil {
		panic(err)
	}
	return func() []byte { return b }
}

// TestHail: who was only asked for a name still answers the next host on the same stream, as after a snapshot that was taken
// in between, and a session that was on has ended by then.
func TestHail(t *testing.T) {
	ours, theirs := net.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, theirs, ServerConfig{Version: "v", Port: true}) }()
	for range 2 {
		h, err := Hail(ctx, ours)
		if err != nil {
			t.Fatal(err)
		}
		if h.Version != "v" || h.PID != os.Getpid() || h.BootID == "" || h.Kernel == "" {
			t.Errorf("the agent says of itself %+v", h)
		}
		if _, _, err := greet(ctx, ours); err != nil { // a session, which the next Hail ends
			t.Fatal(err)
		}
	}
	cancel()
	<-served
}

// A folder that an agent names gets into its jobs' paths: it must be one, and mean the same wherever it stands.
func TestHelloScratch(t *testing.T) {
	for scratch, good := range map[string]bool{
		"": true, "/run/runner": true, "/a-b/c_d.e": true, "run": false, "/run/": false, "/run/../etc": false, "//run": false,
		"/run:/etc": false, "/run,ro": false, "/r n": false, "/run\n": false, "/é": false,
	} {
		b := append([]byte(readyMark), make([]byte, nonceSize)...)
		text := helloOf(Hello{Protocol: Protocol, Scratch: scratch})()
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(text))), text...)
		h, err := awaitReady(newBufio(b), [nonceSize]byte{})
		if good && (err != nil || h.Scratch != scratch) || !good && !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: %+v, %v", scratch, h, err)
		}
	}
}
