package vmapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr/vmapi/vmapitest"
)

// listen opens a port of a machine.
func listen(t *testing.T, m *Machine) net.Listener {
	t.Helper()
	l, err := m.Listen(context.WithoutCancel(t.Context()), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// accepting hands every connection to serve, and returns what ends when the port has.
func accepting(l net.Listener, serve func(net.Conn)) (ended chan error) {
	ended = make(chan error, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			go serve(conn)
		}
	}()
	return ended
}

// The machines of these tests are processes of this host, so that who connects to their loopback is the test itself.
func dial(t *testing.T, l net.Listener) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return conn.(*net.TCPConn)
}

// What is written arrives, both ways, and so does the end of one direction while the other goes on.
func TestPort(t *testing.T) {
	l := listen(t, newRig(t, nil).start())
	accepting(l, func(conn net.Conn) {
		defer conn.Close()
		b, err := io.ReadAll(conn)
		if err != nil {
			t.Error(err)
		}
		conn.Write(append([]byte("got "), b...))
	})
	sent := make([]byte, 3<<20) // more than the windows between
	rand.Read(sent)
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			conn := dial(t, l)
			if _, err := conn.Write(sent); err != nil {
				t.Error(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Error(err)
			}
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, append([]byte("got "), sent...)) {
				t.Errorf("%d bytes came back of %d, %v", len(got), len(sent)+4, err)
			}
		})
	}
	calls.Wait()
}

// An HTTP server on a port answers many requests on one connection, and its deadlines are kept.
func TestPortHTTP(t *testing.T) {
	l := listen(t, newRig(t, nil).start())
	s := &http.Server{ReadHeaderTimeout: 300 * time.Millisecond, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s from %s", r.URL.Path, r.RemoteAddr)
	})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	for i := range 50 {
		resp, err := http.Get(fmt.Sprintf("http://%s/%d", l.Addr(), i))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprintf("/%d from %s", i, l.Addr()); err != nil || string(b) != want {
			t.Errorf("%q, %v; want %q", b, err, want)
		}
	}
	// Who says nothing is let go.
	if n, err := dial(t, l).Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("a client that says nothing: %d, %v", n, err)
	}
	if err := errors.Join(s.Close(), <-served); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// A port ends with the listener, the lease and the machine, and then nothing listens.
func TestPortEnds(t *testing.T) {
	r := newRig(t, nil)
	for name, end := range map[string]func(*Machine, net.Listener) error{
		"closed": func(_ *Machine, l net.Listener) error { return l.Close() },
		"lease":  func(m *Machine, _ net.Listener) error { _, err := r.c.Lease(ctx(t), m.ID(), 0); return err },
		"machine": func(m *Machine, _ net.Listener) error {
			return r.c.Delete(ctx(t), m.ID(), "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := r.start()
			l := listen(t, m)
			accepted := make(chan net.Conn, 1)
			ended := accepting(l, func(conn net.Conn) { accepted <- conn })
			conn := dial(t, l)
			defer (<-accepted).Close()
			if err := end(m, l); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v, want net.ErrClosed", err)
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("a connection that was open: %v, want its end", err)
			}
			until := time.Now().Add(20 * time.Second)
			for {
				again, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					break
				}
				again.Close()
				if time.Now().After(until) {
					t.Fatal("something listens in the machine still")
				}
			}
		})
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// Ports are for who leased the machine, on its loopback, over a connection that can become one.
func TestPortRefused(t *testing.T) {
	r := newRig(t, nil)
	m := r.start()
	post := func(path string, headers ...string) (int, string) {
		t.Helper()
		status, _, body := r.raw("POST", path, "", headers...)
		return status, body
	}
	path := "/api/vms/" + m.ID() + "/ports"
	for _, tt := range []struct {
		path    string
		headers []string
		want    int
	}{
		{path + "?addr=127.0.0.1:0", nil, http.StatusUpgradeRequired},
		{path + "?addr=127.0.0.1:0", []string{"Connection", "Upgrade", "Upgrade", "websocket"}, http.StatusUpgradeRequired},
		{path, nil, http.StatusBadRequest},
		{path + "?addr=0.0.0.0:0", nil, http.StatusBadRequest},
		{path + "?addr=10.0.0.1:80", nil, http.StatusBadRequest},
		{path + "?addr=localhost:0", nil, http.StatusBadRequest},
		{"/api/vms/vm-0/ports?addr=127.0.0.1:0", nil, http.StatusNotFound},
		{path + "?addr=127.0.0.1:0", []string{"Authorization", "Bearer x"}, http.StatusUnauthorized},
	} {
		if status, body := post(tt.path, tt.headers...); status != tt.want {
			t.Errorf("POST %s %v: %d %s, want %d", tt.path, tt.headers, status, body, tt.want)
		}
	}
	token, err := NewToken(testKey, "somebody else", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other, err := r.client(token).Open(ctx(t), m.ID())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Listen(ctx(t), "127.0.0.1:0"); status(err) != http.StatusForbidden {
		t.Errorf("somebody else: %v, want 403", err)
	}
	if _, err := r.c.Lease(ctx(t), m.ID(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Listen(ctx(t), "127.0.0.1:0"); status(err) != http.StatusConflict {
		t.Errorf("without a lease: %v, want 409", err)
	}
}

// A machine has so many ports and no more.
func TestPortsBounded(t *testing.T) {
	m := newRig(t, nil).start()
	for i := range 100 {
		l, err := m.Listen(ctx(t), "127.0.0.1:0")
		if err != nil {
			if i < 8 {
				t.Errorf("port %d: %v", i, err)
			}
			return
		}
		defer l.Close()
	}
	t.Error("a machine has more than 100 ports")
}

// A server of the original kind has none, and says so in a way that jobs go on without.
func TestPortOfOriginal(t *testing.T) {
	_, c := fcctl(t, vmapitest.Habits{})
	m, err := c.Start(ctx(t), CreateRequest{VMType: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Listen(ctx(t), "127.0.0.1:0"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v, want errors.ErrUnsupported", err)
	}
}
