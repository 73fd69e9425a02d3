package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// socketpair returns two ends of a stream.
func socketpair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := [2]net.Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// agent serves one end of a socket pair, and returns a client on the other.
func agent(t testing.TB, cfg ServerConfig) *Client {
	t.Helper()
	host, guest := socketpair(t)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, guest, cfg) }()
	c, err := Connect(ctx, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		cancel()
		<-served
	})
	return c
}

// sh is a command for the shell.
func sh(script string) Cmd {
	return Cmd{Args: []string{"sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")}}
}

func TestExec(t *testing.T) {
	c := agent(t, ServerConfig{Version: "test"})
	if h := c.Hello(); h.Protocol != Protocol || h.PID != os.Getpid() || h.Version != "test" || h.Kernel == "" {
		t.Errorf("hello = %+v", h)
	}
	for _, tt := range []struct {
		name string
		cmd  Cmd
		out  string
		want Exit
	}{
		{"output in order", sh("echo a; echo b >&2; echo c"), "a\nb\nc\n", Exit{Started: true}},
		{"status", sh("exit 7"), "", Exit{Started: true, Code: 7}},
		{"signal", sh("kill -9 $$"), "", Exit{Started: true, Code: 137, Signal: "SIGKILL", Message: "sh: killed"}},
		{"no such program", Cmd{Args: []string{"nonesuch"}, Env: []string{"PATH=/bin"}}, "", Exit{Code: 127, Message: "nonesuch: command not found"}},
		{"no such file", Cmd{Args: []string{"/nonesuch"}}, "", Exit{Code: 127, Message: "/nonesuch: no such file or directory"}},
		{"not executable", Cmd{Args: []string{"/etc/passwd"}}, "", Exit{Code: 126, Message: "/etc/passwd: permission denied"}},
		{"a folder", Cmd{Args: []string{"/etc"}}, "", Exit{Code: 126, Message: "/etc: is a directory"}},
		{"no folder to be in", Cmd{Args: []string{"/bin/true"}, Dir: "/nonesuch"}, "", Exit{Code: 126, Message: "working directory /nonesuch: no such file or directory"}},
		{"nothing", Cmd{}, "", Exit{Code: 127, Message: "no program was named"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			got, err := c.Exec(context.Background(), tt.cmd, &out)
			if err != nil {
				t.Fatal(err)
			}
			if got.Started && got.Duration <= 0 {
				t.Errorf("duration %v", got.Duration)
			}
			got.Duration, got.CPU, got.Memory = 0, 0, 0
			if got != tt.want {
				t.Errorf("exit %+v, want %+v", got, tt.want)
			}
			if out.String() != tt.out {
				t.Errorf("output %q, want %q", &out, tt.out)
			}
		})
	}
}

func TestExecStdin(t *testing.T) {
	c := agent(t, ServerConfig{})
	in := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB: more than any buffer on the way
	cmd := sh("cat")
	cmd.Stdin = strings.NewReader(in)
	var out bytes.Buffer
	if exit, err := c.Exec(context.Background(), cmd, &out); err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	if out.String() != in {
		t.Errorf("%d bytes came back, want %d", out.Len(), len(in))
	}
}

func TestExecBackground(t *testing.T) {
	c := agent(t, ServerConfig{})
	var out bytes.Buffer
	begin := time.Now()
	exit, err := c.Exec(context.Background(), sh("sleep 100 & echo $!"), &out)
	if err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	pid := strings.TrimSpace(out.String())
	if _, err := os.Stat("/proc/" + pid); err != nil {
		t.Errorf("what was left in the background is gone: %v", err)
	}
	if exit, err := c.Exec(context.Background(), sh("kill "+pid), nil); err != nil || !exit.Success() {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestExecCancel(t *testing.T) {
	c := agent(t, ServerConfig{})
	why := errors.New("enough")
	for _, tt := range []struct {
		name   string
		script string
		grace  time.Duration
		want   Exit
	}{
		{"at once", "echo ready; sleep 100", 0, Exit{Started: true, Code: 137, Signal: "SIGKILL"}},
		{"heeds SIGINT", "trap 'exit 3' INT; echo ready; while :; do sleep 0.01; done", time.Minute, Exit{Started: true, Code: 3}},
		{"ignores all", "trap '' INT TERM; echo ready; while :; do sleep 0.01; done", 100 * time.Millisecond, Exit{Started: true, Code: 137, Signal: "SIGKILL"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(context.Background())
			cmd := sh(tt.script)
			cmd.Grace = tt.grace
			exit, err := c.Exec(ctx, cmd, writerFunc(func(b []byte) (int, error) {
				cancel(why)
				return len(b), nil
			}))
			if !errors.Is(err, why) {
				t.Errorf("error %v, want the cause", err)
			}
			exit.Duration, exit.Message, exit.CPU, exit.Memory = 0, "", 0, 0
			if exit != tt.want {
				t.Errorf("exit %+v, want %+v", exit, tt.want)
			}
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestPutGet(t *testing.T) {
	c := agent(t, ServerConfig{})
	dir := filepath.Join(t.TempDir(), "a", "b")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "script.sh", Mode: 0o755, Size: 4, Typeflag: tar.TypeReg})
	io.WriteString(w, "true")
	w.Close()
	if err := c.Put(context.Background(), dir, &b); err != nil {
		t.Fatal(err)
	}
	r, err := c.Get(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(bytes.NewReader(text))
	tr.Next()
	h, err := tr.Next()
	if err != nil || h.Name != "script.sh" || h.Mode != 0o755 {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := c.Get(context.Background(), filepath.Join(dir, "nonesuch")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}
