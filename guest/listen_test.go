package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// opened returns a port in the agent's machine, which here is this one.
func opened(t *testing.T) net.Listener {
	t.Helper()
	l, err := listening(t, ServerConfig{})().Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dialed returns both ends of a connection through the port.
func dialed(t *testing.T, l net.Listener) (inside *net.TCPConn, host net.Conn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	h := <-accepted
	if h == nil {
		t.FailNow()
	}
	t.Cleanup(func() { h.Close() })
	return c.(*net.TCPConn), h
}

// What a loopback port accepts has nothing to pace, whatever the host's default is.
func TestListenPort(t *testing.T) {
	for _, test := range []struct{ addr, want string }{
		{"127.0.0.1:0", "reno"},
		{"[::1]:0", "reno"},
		{"0.0.0.0:0", defaultCongestion(t)},
	} {
		l, err := ListenPort(t.Context(), netip.MustParseAddrPort(test.addr))
		if err != nil {
			if strings.HasPrefix(test.addr, "[") && errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Logf("no IPv6 here: %v", err)
				continue
			}
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		raw, err := s.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var got string
		raw.Control(func(fd uintptr) { got, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) })
		if err != nil || got != test.want {
			t.Errorf("a connection to %s: %q, %v, want %q", test.addr, got, err, test.want)
		}
	}
}

func defaultCongestion(t *testing.T) string {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// A server on the host serves what connects inside the machine, many at once, both ways.
func TestListenHTTP(t *testing.T) {
	l := opened(t)
	blob := make([]byte, 3<<20+17)
	rand.Read(blob)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Got", fmt.Sprintf("%d %x", n, h.Sum(nil)))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	want := fmt.Sprintf("%d %x", len(blob), sha256.Sum256(blob))
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			for range 3 {
				resp, err := http.Post("http://"+l.Addr().String(), "application/octet-stream", bytes.NewReader(blob))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, blob) || resp.Header.Get("X-Got") != want {
					t.Errorf("got %d bytes back (%v), the server got %s, want %s", len(got), err, resp.Header.Get("X-Got"), want)
				}
			}
		})
	}
	calls.Wait()
	server.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// Each direction of a connection ends by itself.
func TestListenHalfClose(t *testing.T) {
	inside, host := dialed(t, opened(t))
	if _, err := inside.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	inside.CloseWrite()
	if b, err := io.ReadAll(host); err != nil || string(b) != "question" {
		t.Fatalf("host read %q, %v", b, err)
	}
	if _, err := host.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := host.(*forward).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(inside); err != nil || string(b) != "answer" {
		t.Fatalf("inside read %q, %v", b, err)
	}
	if _, err := host.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after the end: %v, want net.ErrClosed", err)
	}
}

// A connection that breaks inside the machine is no end of a file on the host.
func TestListenReset(t *testing.T) {
	inside, host := dialed(t, opened(t))
	inside.SetLinger(0)
	inside.Write([]byte("half"))
	b := make([]byte, 4)
	if _, err := io.ReadFull(host, b); err != nil {
		t.Fatal(err)
	}
	inside.Close() // with SO_LINGER 0: a reset
	if b, err := io.ReadAll(host); err == nil {
		t.Errorf("read %q and no error after a reset", b)
	}
}

// A deadline that passes in the middle of anything loses no byte.
func TestListenDeadline(t *testing.T) {
	inside, host := dialed(t, opened(t))
	want := make([]byte, 200_000)
	rand.Read(want)
	go func() {
		for b := want; len(b) > 0; {
			n := min(len(b), 997)
			if _, err := inside.Write(b[:n]); err != nil {
				t.Error(err)
			}
			b = b[n:]
		}
		inside.CloseWrite()
	}()
	var got []byte
	b := make([]byte, 333)
	timeouts := 0
	for {
		host.SetReadDeadline(time.Now().Add(20 * time.Microsecond))
		n, err := host.Read(b)
		got = append(got, b[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if ne, ok := errors.AsType[net.Error](err); err != nil && (!ok || !ne.Timeout()) {
			t.Fatal(err)
		}
		if err != nil {
			timeouts++
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived of %d, or others, after %d timeouts", len(got), len(want), timeouts)
	}
}

// A port closes with its listener, with the stream and with the context; whoever waits in Accept is told.
func TestListenCloses(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(l net.Listener, c *Client, cancel func())
	}{
		{"listener", func(l net.Listener, _ *Client, _ func()) { l.Close(); l.Close() }},
		{"stream", func(_ net.Listener, c *Client, _ func()) { c.Close() }},
		{"context", func(_ net.Listener, _ *Client, cancel func()) { cancel() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := listening(t, ServerConfig{})()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			l, err := c.Listen(ctx, "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			accepted := make(chan error)
			go func() {
				_, err := l.Accept()
				accepted <- err
			}()
			tt.end(l, c, cancel)
			if err := <-accepted; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v, want net.ErrClosed", err)
			}
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
				conn, err := net.Dial("tcp", l.Addr().String())
				if errors.Is(err, unix.ECONNREFUSED) {
					break
				}
				if err == nil {
					conn.Close()
				}
				if time.Now().After(deadline) {
					t.Fatalf("the port is still open: %v", err)
				}
			}
		})
	}
}

// No more connections are open at once than the host has room for; the next one waits for one that ends.
func TestListenBound(t *testing.T) {
	l := opened(t)
	var inside, host []net.Conn
	for range maxForwards {
		i, h := dialed(t, l)
		inside, host = append(inside, i), append(host, h)
	}
	late, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	accepted := make(chan net.Conn)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	select {
	case <-accepted:
		t.Fatal("one connection too many was accepted")
	case <-time.After(50 * time.Millisecond):
	}
	host[7].Close()
	c := <-accepted
	if c == nil {
		t.Fatal("the late connection was not accepted")
	}
	c.Close()
	if _, err := inside[7].Read(make([]byte, 1)); err == nil {
		t.Error("a connection that the host closed is open inside")
	}
}

func TestListenRefused(t *testing.T) {
	c := listening(t, ServerConfig{})()
	for _, tt := range []struct {
		addr string
		want error
	}{
		{"0.0.0.0:0", ErrRefused}, {"[::]:0", ErrRefused}, {"192.0.2.1:80", ErrRefused},
		{"localhost:0", ErrRefused}, {"", ErrRefused}, {":80", ErrRefused}, {"127.0.0.1", ErrRefused},
	} {
		if _, err := c.Listen(t.Context(), tt.addr); !errors.Is(err, tt.want) {
			t.Errorf("Listen(%q): %v, want %v", tt.addr, err, tt.want)
		}
	}
	var open []net.Listener
	for range maxPorts {
		l, err := c.Listen(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, l)
	}
	if _, err := c.Listen(t.Context(), "127.0.0.1:0"); !errors.Is(err, ErrRefused) {
		t.Errorf("port %d: %v, want ErrRefused", maxPorts+1, err)
	}
	if _, err := c.Listen(t.Context(), open[0].Addr().String()); err == nil {
		t.Error("the same port twice")
	}
	k, err := c.begin(t.Context(), &request{Op: opAccept, ID: "nonesuch"}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer k.end()
	if _, _, err := k.next(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("accept on no port: %v, want fs.ErrNotExist", err)
	}
}

// What an agent may say of a port, and on a connection, breaks nothing but the connection.
func TestListenHostile(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame []byte
	}{
		{"no address", frame(kStarted, nil)},
		{"a name", frame(kStarted, []byte("evil.example:80"))},
		{"an injection", frame(kStarted, []byte("127.0.0.1:80\nLD_PRELOAD=x"))},
		{"port 0", frame(kStarted, []byte("127.0.0.1:0"))},
		{"a zone", frame(kStarted, []byte("[fe80::1%eth0]:80"))},
		{"other spelling", frame(kStarted, []byte("127.0.0.1:080"))},
		{"long", frame(kStarted, []byte(strings.Repeat("1", 10_000)))},
		{"an exit", frame(kExit, []byte("{}"))},
	} {
		c := hostile(t, func(s io.ReadWriteCloser) { s.Write(tt.frame) })
		if _, err := c.Listen(t.Context(), "127.0.0.1:0"); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v, want ErrProtocol", tt.name, err)
		}
	}
	for _, tt := range []struct {
		name string
		said []byte
	}{
		{"a large frame", binary.BigEndian.AppendUint32([]byte{byte(kData)}, maxData+1)},
		{"an exit", frame(kExit, nil)},
		{"cut short", frame(kData, []byte("hello"))[:7]},
		{"an end with data", frame(kEnd, []byte("x"))},
		{"an error", frame(kError, []byte("{}"))},
		{"nothing", nil},
	} {
		host, agent := streams(t)
		go func() {
			agent.Write(tt.said)
			agent.Close()
		}()
		f := &forward{l: &portListener{slots: make(chan struct{}, 1), addr: "127.0.0.1:1"}, stream: host}
		f.l.slots <- struct{}{}
		if b, err := io.ReadAll(f); err == nil {
			t.Errorf("%s: read %q and no error", tt.name, b)
		}
		f.Close()
		f.Close()
	}
}

// FuzzForward: whatever an agent sends on a connection, reading ends, and yields exactly the data frames before the
// first that is none.
func FuzzForward(f *testing.F) {
	f.Add(append(frame(kData, []byte("hello")), frame(kEnd, nil)...), 3)
	f.Add(append(frame(kBeat, nil), frame(kData, nil)...), 1)
	f.Add(frame(kData, []byte("cut short"))[:7], 9)
	f.Add(frame(kError, []byte(`{"message":"x"}`)), 64)
	f.Fuzz(func(t *testing.T, said []byte, size int) {
		var want []byte
		end := false
		for r := (&reader{r: bytes.NewReader(said), max: maxData}); ; {
			k, b, err := r.next()
			if err != nil || k != kData && (k != kBeat || len(b) > 0) {
				end = err == nil && k == kEnd && len(b) == 0
				break
			}
			if k == kData {
				want = append(want, b...)
			}
		}
		host, agent := net.Pipe()
		go func() {
			agent.Write(said)
			agent.Close()
		}()
		c := &forward{l: &portListener{slots: make(chan struct{}, 1)}, stream: host}
		c.l.slots <- struct{}{}
		defer c.Close()
		var got []byte
		b := make([]byte, 1+(size&0xff))
		for {
			n, err := c.Read(b)
			got = append(got, b[:n]...)
			if err != nil {
				if errors.Is(err, io.EOF) != end {
					t.Errorf("ended with %v, an end was said: %v", err, end)
				}
				break
			}
		}
		// A frame that was cut short has given what there was of it.
		if !bytes.HasPrefix(got, want) || end && len(got) != len(want) {
			t.Errorf("got %d bytes, want %d", len(got), len(want))
		}
	})
}

// BenchmarkForward moves bytes through a port: down to who connected, and up to the host.
func BenchmarkForward(b *testing.B) {
	const size = 64 << 20
	blob := make([]byte, size)
	for _, down := range []bool{true, false} {
		b.Run(map[bool]string{true: "down", false: "up"}[down], func(b *testing.B) {
			host, agent := socketpair(b)
			s := NewServer(ServerConfig{})
			defer s.Close()
			go s.Serve(b.Context(), agent)
			c, err := Connect(b.Context(), host)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			l, err := c.Listen(b.Context(), "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(size)
			for b.Loop() {
				moved := make(chan int64)
				go func() {
					conn, err := l.Accept()
					if err != nil {
						b.Error(err)
					}
					var n int64
					if down {
						n, _ = io.Copy(conn, struct{ io.Reader }{bytes.NewReader(blob)})
					} else {
						n, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, make([]byte, 128<<10))
					}
					conn.Close()
					moved <- n
				}()
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					b.Fatal(err)
				}
				if down {
					io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, 128<<10))
				} else {
					conn.Write(blob)
				}
				conn.Close()
				if n := <-moved; n != size {
					b.Fatalf("%d bytes moved", n)
				}
			}
		})
	}
}
