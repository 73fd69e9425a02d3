package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// listening serves hosts on a socket, and returns how to become one.
func listening(t *testing.T, cfg ServerConfig) (dial func() *Client) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Listen(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-served
		s.Close()
		s.Close()
	})
	return func() *Client {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Connect(context.Background(), conn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

// A process outlives its session; the next may ask for what the last has had, and for its exit.
func TestReattach(t *testing.T) {
	dial := listening(t, ServerConfig{})
	c := dial()
	gate := filepath.Join(t.TempDir(), "gate")
	cmd := sh("echo one; echo two >&2; while [ ! -e " + gate + " ]; do sleep 0.01; done; echo three; exit 5")
	cmd.ID = "job"
	if id, err := c.Start(context.Background(), cmd); err != nil || id != "job" {
		t.Fatalf("start: %q, %v", id, err)
	}
	if _, err := c.Start(context.Background(), cmd); !errors.Is(err, fs.ErrExist) {
		t.Errorf("start again: %v, want fs.ErrExist", err)
	}
	c.Close()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const all = "one\ntwo\nthree\n"
	for _, from := range []int{0, 6, 8, 13} {
		c = dial()
		var out bytes.Buffer
		var once sync.Once
		exit, err := c.Attach(context.Background(), Attachment{ID: "job", From: uint64(from), Out: writerFunc(func(b []byte) (int, error) {
			if out.Write(b); out.String() == all[from:] && from != 13 {
				// Dies before it has the exit.
				once.Do(func() { go c.Close() })
				<-c.Done()
			}
			return len(b), nil
		})})
		if from == 13 && (err != nil || exit.Code != 5) {
			t.Errorf("the last attach: %+v, %v", exit, err)
		}
		if out.String() != all[from:] {
			t.Errorf("from %d: %q, want %q", from, &out, all[from:])
		}
	}
	c = dial()
	if _, err := c.Attach(context.Background(), Attachment{ID: "job", From: 99}); err == nil {
		t.Error("attached to what has ended, beyond its end")
	}
}

// A second attachment takes the process from the first.
func TestDetach(t *testing.T) {
	c := agent(t, ServerConfig{})
	cmd := sh("echo ready; read line; exit 2")
	cmd.ID = "job"
	r, w := io.Pipe()
	cmd.Stdin = r
	ready := make(chan struct{})
	first := make(chan error, 1)
	go func() {
		_, err := c.Exec(context.Background(), cmd, writerFunc(func(b []byte) (int, error) { close(ready); return len(b), nil }))
		first <- err
	}()
	<-ready
	second := make(chan Exit, 1)
	attached := make(chan struct{})
	go func() {
		exit, _ := c.Attach(context.Background(), Attachment{ID: "job", Out: writerFunc(func(b []byte) (int, error) { close(attached); return len(b), nil })})
		second <- exit
	}()
	<-attached
	if err := <-first; err == nil || !strings.Contains(err.Error(), "detached") {
		t.Errorf("the first: %v", err)
	}
	io.WriteString(w, "go\n")
	w.Close()
	if exit := <-second; exit.Code != 2 {
		t.Errorf("the second: %+v", exit)
	}
}

// A host that does not read stops the process, not the agent, and costs the agent a bounded ring.
func TestBackPressure(t *testing.T) {
	c := agent(t, ServerConfig{})
	progress := filepath.Join(t.TempDir(), "progress")
	release := make(chan struct{})
	var got atomic.Int64
	done := make(chan error, 1)
	go func() {
		_, err := c.Exec(context.Background(), sh("i=0; while [ $i -lt 64 ]; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i > "+progress+"; done"),
			writerFunc(func(b []byte) (int, error) {
				<-release
				got.Add(int64(len(b)))
				return len(b), nil
			}))
		done <- err
	}()
	// It gets ahead by what the buffers on the way hold, and no more.
	var last []byte
	for still := 0; still < 20; time.Sleep(20 * time.Millisecond) {
		now, err := os.ReadFile(progress)
		if err != nil || !bytes.Equal(now, last) {
			still, last = 0, now
			continue
		}
		still++
	}
	var mib int
	if fmt.Sscan(string(last), &mib); mib > 8 {
		t.Errorf("%d MiB were written that nobody read", mib)
	}
	// Others are not held up.
	if exit, err := c.Exec(context.Background(), sh("exit 3"), nil); err != nil || exit.Code != 3 {
		t.Errorf("%+v, %v", exit, err)
	}
	close(release)
	if err := <-done; err != nil || got.Load() != 64<<20 {
		t.Errorf("%d bytes, %v", got.Load(), err)
	}
}

// A sink that fails ends the process.
func TestSinkFails(t *testing.T) {
	c := agent(t, ServerConfig{})
	full := errors.New("disk full")
	var pid string
	_, err := c.Exec(context.Background(), sh("echo $$; exec sleep 1000"), writerFunc(func(b []byte) (int, error) {
		pid = strings.TrimSpace(string(b))
		return 0, full
	}))
	if !errors.Is(err, full) {
		t.Errorf("got %v, want the sink's error", err)
	}
	for {
		if _, err := os.Stat("/proc/" + pid); err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// Without a host, processes end after a while, and so does an agent that listens.
func TestOrphans(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerConfig{Orphans: 300 * time.Millisecond})
	served := make(chan error, 1)
	go func() { served <- s.Listen(context.Background(), l) }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Connect(context.Background(), conn)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := sh("echo $$; exec sleep 1000")
	c.Exec(context.Background(), cmd, writerFunc(func(b []byte) (int, error) {
		out.Write(b)
		go c.Close()
		<-c.Done()
		return len(b), nil
	}))
	if err := <-served; err != nil {
		t.Errorf("listen: %v", err)
	}
	s.Close()
	if _, err := os.Stat("/proc/" + strings.TrimSpace(out.String())); err == nil {
		t.Error("the process is still there")
	}
}

// port is a stream that outlives its hosts, as a virtio-serial port does: it ends while none is connected, and
// loses what is written then.
type port struct {
	net.Conn // never used
	mu       sync.Mutex
	host     net.Conn
}

func (p *port) current() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host
}

func (p *port) Read(b []byte) (int, error) {
	c := p.current()
	if c == nil {
		return 0, io.EOF
	}
	n, err := c.Read(b)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

func (p *port) Write(b []byte) (int, error) {
	if c := p.current(); c != nil {
		c.Write(b)
	}
	return len(b), nil
}

func (p *port) SetDeadline(d time.Time) error {
	if c := p.current(); c != nil {
		return c.SetDeadline(d)
	}
	return nil
}

func (p *port) Close() error { return p.connect(nil) }

func (p *port) connect(c net.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.host != nil {
		p.host.Close()
	}
	p.host = c
	return nil
}

func TestPort(t *testing.T) {
	p := &port{}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, p, ServerConfig{Port: true}) }()
	for i := range 3 {
		host, end := socketpair(t)
		p.connect(end)
		c, err := Connect(ctx, host)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			cmd := sh("echo $$ > /dev/null; sleep 0.01; exit 4")
			cmd.ID = "across"
			if _, err := c.Start(ctx, cmd); err != nil {
				t.Error(err)
			}
		}
		if i == 2 {
			if exit, err := c.Attach(ctx, Attachment{ID: "across"}); err != nil || exit.Code != 4 {
				t.Errorf("%+v, %v", exit, err)
			}
		}
		c.Close()
	}
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("serve: %v", err)
	}
}

// A new host finds an agent that is still in the last one's session, even in the middle of a frame.
func TestResync(t *testing.T) {
	for _, tt := range []struct {
		name string
		left []byte
	}{
		{"between frames", nil},
		{"in a frame", binary.BigEndian.AppendUint32([]byte{0, 0, 0, 1, 0, 0, 0, 1}, maxFrame)},
		{"in a header", []byte{0, 0, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host, end := socketpair(t)
			served := make(chan error, 1)
			go func() { served <- Serve(context.Background(), end, ServerConfig{}) }()
			// A host that dies: its handshake, the opening of a stream, and a part of a frame.
			if _, _, err := greet(context.Background(), host); err != nil {
				t.Fatal(err)
			}
			host.Write([]byte{0, muxTypeGrant, 0, muxFlagSYN, 0, 0, 0, 1, 0, 0, 0, 0})
			host.Write(tt.left)
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
	}
}

func TestPrepareRefused(t *testing.T) {
	c := agent(t, ServerConfig{})
	if err := c.Prepare(context.Background(), Identity{Hostname: "x"}); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
	if err := new(clone).addEntropy(make([]byte, maxEntropy+1)); !errors.Is(err, ErrRefused) {
		t.Errorf("too much entropy: %v, want ErrRefused", err)
	}
	if err := prepare(&Identity{Hostname: strings.Repeat("x", 65)}); !errors.Is(err, ErrRefused) {
		t.Errorf("a long name: %v, want ErrRefused", err)
	}
	if os.Geteuid() == 0 {
		f, err := os.OpenFile("/dev/random", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c := clone{random: f.Fd()}
		if err := c.addEntropy(make([]byte, 32)); err != nil { // harmless on any machine: entropy only ever helps
			t.Logf("entropy: %v", err) // in a container
		}
	}
}

func TestLimits(t *testing.T) {
	c := agent(t, ServerConfig{})
	cmd := sh("true")
	cmd.ID = strings.Repeat("x", maxID+1)
	if _, err := c.Exec(context.Background(), cmd, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("a long id: %v, want ErrRefused", err)
	}
	cmd = sh("true")
	cmd.Env = []string{"X=" + strings.Repeat("x", maxRequest)}
	if _, err := c.Exec(context.Background(), cmd, nil); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("a large environment: %v, want E2BIG", err)
	}
	cmd = sh("true")
	cmd.Env = append(cmd.Env, "X="+strings.Repeat("x", 1<<20)) // more than the kernel takes in one string
	if exit, err := c.Exec(context.Background(), cmd, nil); err != nil || exit.Started || exit.Code != 126 {
		t.Errorf("a long string: %+v, %v", exit, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Exec(ctx, sh("true"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	if err := c.Signal(context.Background(), "nonesuch", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a signal to nobody: %v", err)
	}
}
