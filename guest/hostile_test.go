package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

func newBufio(b []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(b)) }

// discardConn swallows what is written.
type discardConn struct{ net.Conn }

func (discardConn) Write(b []byte) (int, error)     { return len(b), nil }
func (discardConn) SetDeadline(time.Time) error     { return nil }
func (discardConn) SetReadDeadline(time.Time) error { return nil }

// hostile connects a client to an agent that shakes hands properly and answers each operation with answer, after
// it has read the request.
func hostile(t testing.TB, reply func(io.ReadWriteCloser)) *Client {
	t.Helper()
	host, agent := socketpair(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		r := bufio.NewReader(agent)
		if err := answer(context.Background(), agent, r, false, helloOf(Hello{Protocol: Protocol})); err != nil {
			return
		}
		mux, err := yamux.Server(&muxConn{r: r, conn: agent, close: func() {}}, muxConfig(false))
		if err != nil {
			return
		}
		defer mux.Close()
		for {
			s, err := mux.AcceptStream()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer s.Close()
				in := reader{r: s, max: maxRequest}
				if _, _, err := in.next(); err == nil {
					reply(s)
				}
			})
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := Connect(ctx, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		serving.Wait()
		agent.Close()
	})
	return c
}

// streams returns both ends of a stream between a host's and an agent's multiplexer.
func streams(t testing.TB) (host, agent *yamux.Stream) {
	t.Helper()
	a, b := socketpair(t)
	hostMux, err := yamux.Client(a, muxConfig(true))
	if err != nil {
		t.Fatal(err)
	}
	agentMux, err := yamux.Server(b, muxConfig(false))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hostMux.Close()
		agentMux.Close()
	})
	if host, err = hostMux.OpenStream(); err != nil {
		t.Fatal(err)
	}
	if agent, err = agentMux.AcceptStream(); err != nil {
		t.Fatal(err)
	}
	return host, agent
}

// An agent's lies are errors that say so.
func TestHostileAgent(t *testing.T) {
	data := func(seq byte, text string) []byte {
		return frame(kStdout, append([]byte{0, 0, 0, 0, 0, 0, 0, seq}, text...))
	}
	for _, tt := range []struct {
		name  string
		reply []byte
	}{
		{"huge frame", []byte{byte(kStdout), 0xff, 0xff, 0xff, 0xff}},
		{"frame one too long", binary.BigEndian.AppendUint32([]byte{byte(kStdout)}, maxFrame+1)},
		{"unknown frame", frame(200, nil)},
		{"a host's frame", frame(kRequest, []byte("{}"))},
		{"no JSON", frame(kExit, []byte("exit"))},
		{"no error", frame(kError, []byte("{"))},
		{"impossible status", frame(kExit, []byte(`{"started":true,"code":256}`))},
		{"negative status", frame(kExit, []byte(`{"started":true,"code":-1}`))},
		{"endless signal", frame(kExit, []byte(`{"started":true,"signal":"`+strings.Repeat("X", 1000)+`"}`))},
		{"gap", append(data(0, "abc"), data(4, "e")...)},
		{"repetition", append(data(0, "abc"), data(0, "abc")...)},
		{"short output", frame(kStdout, []byte("1234567"))},
		{"end of another operation", frame(kEnd, []byte("{}"))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := hostile(t, func(s io.ReadWriteCloser) { s.Write(tt.reply) })
			exit, err := c.Exec(context.Background(), sh("x"), nil)
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("%+v, %v; want ErrProtocol", exit, err)
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		c := hostile(t, func(io.ReadWriteCloser) {})
		if exit, err := c.Exec(context.Background(), sh("x"), nil); !errors.Is(err, ErrLost) {
			t.Errorf("%+v, %v; want ErrLost", exit, err)
		}
		if _, err := c.Get(context.Background(), "/x"); !errors.Is(err, ErrLost) {
			t.Errorf("get: %v; want ErrLost", err)
		}
		if err := c.Put(context.Background(), "/x", strings.NewReader("")); !errors.Is(err, ErrLost) {
			t.Errorf("put: %v; want ErrLost", err)
		}
	})
	t.Run("a tar cut short", func(t *testing.T) {
		c := hostile(t, func(s io.ReadWriteCloser) { s.Write(frame(kData, []byte("half"))) })
		r, err := c.Get(context.Background(), "/x")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := io.ReadAll(r); !errors.Is(err, ErrLost) {
			t.Errorf("got %v, want ErrLost", err)
		}
	})
	t.Run("words", func(t *testing.T) {
		c := hostile(t, func(s io.ReadWriteCloser) {
			s.Write(frame(kError, []byte(`{"code":"permission","message":"no"}`)))
		})
		if err := c.Prepare(context.Background(), Identity{}); err == nil || err.Error() != "prepare: agent: no" {
			t.Errorf("got %v", err)
		}
	})
}

// An agent that opens streams loses the session.
func TestHostileStreams(t *testing.T) {
	host, agent := socketpair(t)
	defer agent.Close()
	over := make(chan struct{})
	go func() {
		defer close(over)
		r := bufio.NewReader(agent)
		if err := answer(context.Background(), agent, r, false, helloOf(Hello{Protocol: Protocol})); err != nil {
			return
		}
		mux, err := yamux.Server(&muxConn{r: r, conn: agent, close: func() {}}, muxConfig(false))
		if err != nil {
			return
		}
		defer mux.Close()
		for {
			s, err := mux.OpenStream()
			if err != nil {
				return
			}
			go s.Write(make([]byte, 1<<20))
		}
	}()
	c, err := Connect(context.Background(), host)
	if err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	if _, err := c.Exec(context.Background(), sh("x"), nil); !errors.Is(err, ErrLost) {
		t.Errorf("got %v, want ErrLost", err)
	}
	c.Close()
	<-over
}

// An agent that never answers is given up when the context ends.
func TestSilentAgent(t *testing.T) {
	silent := make(chan struct{})
	c := hostile(t, func(io.ReadWriteCloser) { <-silent })
	defer close(silent)
	why := errors.New("waited long enough")
	for _, tt := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"get", func(ctx context.Context) error { _, err := c.Get(ctx, "/x"); return err }},
		{"put", func(ctx context.Context) error { return c.Put(ctx, "/x", strings.NewReader("")) }},
		{"put a lot", func(ctx context.Context) error { return c.Put(ctx, "/x", endless{}) }},
		{"signal", func(ctx context.Context) error { return c.Signal(ctx, "x", 9) }},
		{"start", func(ctx context.Context) error { _, err := c.Start(ctx, sh("x")); return err }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(context.Background(), 50*time.Millisecond, why)
			defer cancel()
			if err := tt.do(ctx); !errors.Is(err, why) {
				t.Errorf("got %v, want the cause", err)
			}
		})
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// The handshake finds its place whatever is on the stream, and gives up on one that is no agent's.
func TestHandshake(t *testing.T) {
	junk := bytes.Repeat([]byte("\xfftgr/ready mark\nxxxxxxxxxxxxxxxx\xff\x00\x00"), 1000)
	t.Run("after junk in both directions", func(t *testing.T) {
		host, agent := socketpair(t)
		host.Write(junk[:50_000/2])
		agent.Write(junk[:50_000/2])
		served := make(chan error, 1)
		go func() { served <- Serve(context.Background(), agent, ServerConfig{}) }()
		c, err := Connect(context.Background(), host)
		if err != nil {
			t.Fatal(err)
		}
		if exit, err := c.Exec(context.Background(), sh("exit 3"), nil); err != nil || exit.Code != 3 {
			t.Errorf("%+v, %v", exit, err)
		}
		c.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Run("flood", func(t *testing.T) {
		host, agent := socketpair(t)
		defer agent.Close()
		go io.Copy(io.Discard, agent)
		go io.Copy(agent, endless{})
		if _, err := Connect(context.Background(), host); !errors.Is(err, ErrProtocol) {
			t.Errorf("got %v, want ErrProtocol", err)
		}
	})
	t.Run("silence", func(t *testing.T) {
		host, agent := socketpair(t)
		defer agent.Close()
		why := errors.New("gave up")
		ctx, cancel := context.WithTimeoutCause(context.Background(), 300*time.Millisecond, why)
		defer cancel()
		if _, err := Connect(ctx, host); !errors.Is(err, why) {
			t.Errorf("got %v, want the cause", err)
		}
	})
	t.Run("other protocol", func(t *testing.T) {
		host, agent := socketpair(t)
		defer agent.Close()
		go answer(context.Background(), agent, bufio.NewReader(agent), false, helloOf(Hello{Protocol: Protocol + 1}))
		if _, err := Connect(context.Background(), host); err == nil || !strings.Contains(err.Error(), "speaks protocol") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		host, agent := socketpair(t)
		agent.Close()
		if _, err := Connect(context.Background(), host); err == nil {
			t.Error("no error")
		}
	})
}
