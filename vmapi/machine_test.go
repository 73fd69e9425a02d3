package vmapi

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vmapi/vmapitest"
)

// fcctl starts a server of the original kind and returns a client of it.
func fcctl(t *testing.T, h vmapitest.Habits) (*vmapitest.Server, *Client) {
	t.Helper()
	s, err := vmapitest.New(h)
	if err != nil {
		t.Skipf("NOT TESTED: the stand-in for fcctl-web: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := NewClient(ClientConfig{URL: s.URL, Token: h.Token})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// Whatever serves the machine, commands and files do what the agent's own client does.
func TestMachines(t *testing.T) {
	t.Run("ours", func(t *testing.T) { machineTable(t, newRig(t, nil).start(), true) })
	for name, h := range map[string]vmapitest.Habits{
		"fcctl-web":                     {},
		"fcctl-web whose ssh breaks":    {BootPolls: 2, NotReady: 3, LoseEvery: 5},
		"fcctl-web with a time in ms":   {OnlyMS: true},
		"fcctl-web that asks for names": {Token: "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, c := fcctl(t, h)
			m, err := c.Start(ctx(t), CreateRequest{Name: "job", VMType: "bionic-test"})
			if err != nil {
				t.Fatal(err)
			}
			machineTable(t, m, false)
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if now, ever := s.Machines(); now != 0 || ever != 1 {
				t.Errorf("%d machines are left of %d", now, ever)
			}
		})
	}
}

func machineTable(t *testing.T, m *Machine, ours bool) {
	exits(t, m, ours)
	streams(t, m)
	cancels(t, m, ours)
	files(t, m)
}

func sh(script string) guest.Cmd {
	return guest.Cmd{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin"}}
}

func exits(t *testing.T, m *Machine, ours bool) {
	signal := func(s string) string {
		if ours {
			return s
		}
		return "" // cannot be known there
	}
	for _, tt := range []struct {
		name string
		cmd  guest.Cmd
		want guest.Exit
	}{
		{"success", sh("exit 0"), guest.Exit{Started: true}},
		{"1", sh("exit 1"), guest.Exit{Started: true, Code: 1}},
		{"255 is the command's own", sh("exit 255"), guest.Exit{Started: true, Code: 255}},
		{"SIGTERM", sh("kill -TERM $$"), guest.Exit{Started: true, Code: 143, Signal: signal("SIGTERM")}},
		{"not found", guest.Cmd{Args: []string{"nonesuch-program"}, Env: []string{"PATH=/bin"}}, guest.Exit{Code: 127}},
		{"not executable", guest.Cmd{Args: []string{"/etc/passwd"}}, guest.Exit{Code: 126}},
		{"no such folder", guest.Cmd{Args: []string{"/bin/true"}, Dir: "/nonesuch"}, guest.Exit{Code: 126}},
		{"no program", guest.Cmd{}, guest.Exit{Code: 127}},
	} {
		got, err := m.Exec(ctx(t), tt.cmd, nil)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if !got.Started && got.Message == "" {
			t.Errorf("%s: no message says why it was not started", tt.name)
		}
		if got.Started {
			got.Message = ""
		}
		got.Message, got.Duration, got.CPU, got.Memory = "", 0, 0, 0
		if got != tt.want {
			t.Errorf("%s: exit %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func streams(t *testing.T, m *Machine) {
	const script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done"
	var both, out, errout bytes.Buffer
	if exit, err := m.Exec(ctx(t), sh(script), &both); err != nil || !exit.Success() || both.String() != "out1\nerr1\nout2\nerr2\nout3\nerr3\n" {
		t.Errorf("together: %+v, %v, %q", exit, err, &both)
	}
	apart := sh(script)
	apart.Stderr = &errout
	if exit, err := m.Exec(ctx(t), apart, &out); err != nil || !exit.Success() || out.String() != "out1\nout2\nout3\n" || errout.String() != "err1\nerr2\nerr3\n" {
		t.Errorf("apart: %+v, %v, %q and %q", exit, err, &out, &errout)
	}
	// Arguments, environment and input are bytes; nothing of them is the shell's.
	odd := "a 'b' \"c\" $HOME `id` \\ \n\t* ; \xff\xfe"
	out.Reset()
	cmd := guest.Cmd{Args: []string{"/usr/bin/env", "sh", "-c", `printf '%s|%s|%s|' "$1" "$ODD" "$PWD"; cat`, "sh", odd}, Dir: "/usr/lib",
		Env: []string{"ODD=" + odd, "PATH=/usr/bin:/bin"}, Stdin: strings.NewReader(odd)}
	if exit, err := m.Exec(ctx(t), cmd, &out); err != nil || !exit.Success() || out.String() != odd+"|"+odd+"|/usr/lib|"+odd {
		t.Errorf("odd bytes: %+v, %v, %q", exit, err, &out)
	}
	// A large output arrives whole and in order.
	const n = 300_000
	sum := sha256.New()
	for i := range n / 10 {
		fmt.Fprintf(sum, "%09d\n", i)
	}
	got := sha256.New()
	if exit, err := m.Exec(ctx(t), sh(fmt.Sprintf("seq -f %%09.0f 0 %d", n/10-1)), got); err != nil || !exit.Success() || !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
		t.Errorf("%d bytes of output: %+v, %v, or not what was written", n, exit, err)
	}
	// Output comes while the command runs.
	first := make(chan struct{})
	began := time.Now()
	go m.Exec(ctx(t), sh("echo now; sleep 3"), writerFunc(func(b []byte) (int, error) { close(first); return len(b), nil }))
	select {
	case <-first:
		if time.Since(began) > 2500*time.Millisecond {
			t.Error("output came when the command had ended")
		}
	case <-time.After(20 * time.Second):
		t.Error("no output")
	}
	broken := errors.New("the disk is full")
	if _, err := m.Exec(ctx(t), sh("yes"), writerFunc(func([]byte) (int, error) { return 0, broken })); !errors.Is(err, broken) {
		t.Errorf("a writer that fails: %v", err)
	}
}

func cancels(t *testing.T, m *Machine, ours bool) {
	why := errors.New("somebody said so")
	for _, tt := range []struct {
		name, script string
		grace        time.Duration
		want         guest.Exit
		says         string
	}{
		{"at once", "echo ready; sleep 1000", 0, guest.Exit{Started: true, Code: 137, Signal: "SIGKILL"}, "ready\n"},
		{"with grace", "trap 'echo bye; exit 9' INT; echo ready; while :; do sleep 0.02; done", 20 * time.Second, guest.Exit{Started: true, Code: 9}, "ready\nbye\n"},
		{"deaf to SIGINT", "trap '' INT; trap 'echo term; exit 8' TERM; echo ready; while :; do sleep 0.02; done", 400 * time.Millisecond, guest.Exit{Started: true, Code: 8}, "ready\nterm\n"},
	} {
		life, cancel := context.WithCancelCause(ctx(t))
		var out bytes.Buffer
		cmd := sh(tt.script)
		cmd.Grace = tt.grace
		exit, err := m.Exec(life, cmd, writerFunc(func(b []byte) (int, error) {
			out.Write(b)
			cancel(why)
			return len(b), nil
		}))
		exit.Message, exit.Duration, exit.CPU, exit.Memory = "", 0, 0, 0
		if !errors.Is(err, why) || exit != tt.want || strings.ReplaceAll(out.String(), "Terminated\n", "") != tt.says { // which the shell says of its sleep
			t.Errorf("%s: %+v, %v, %q; want %+v, the cause, %q", tt.name, exit, err, &out, tt.want, tt.says)
		}
	}
	early, cancel := context.WithCancelCause(context.Background())
	cancel(why)
	if _, err := m.Exec(early, sh("exit 0"), nil); !errors.Is(err, why) {
		t.Errorf("cancelled before it began: %v", err)
	}
	if ours {
		return
	}
	if _, err := m.Exec(ctx(t), guest.Cmd{Args: []string{"bash"}, TTY: &guest.WindowSize{}}, nil); status(err) != 501 {
		t.Errorf("a terminal: %v", err)
	}
	if _, err := m.Exec(ctx(t), guest.Cmd{Args: []string{"true"}, User: "runner"}, nil); status(err) != 501 {
		t.Errorf("another user: %v", err)
	}
	if _, err := m.Exec(ctx(t), guest.Cmd{Args: []string{"a\x00b"}}, nil); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a NUL: %v", err)
	}
	if err := m.Keep(ctx(t), time.Minute); status(err) != 501 {
		t.Errorf("keep: %v", err)
	}
}

// entry is one of a tree.
type entry struct{ Name, Link, Text string }

func files(t *testing.T, m *Machine) {
	big := make([]byte, 300<<10)
	rnd := rand.NewChaCha8([32]byte{})
	rnd.Read(big)
	want := []entry{{Name: "big", Text: string(big)}, {Name: "d/-x y'z", Text: "odd name"}, {Name: "empty"}, {Name: "link", Link: "d"}, {Name: "run", Text: "#!/bin/sh\nexit 6\n"}}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range want {
		h := &tar.Header{Name: e.Name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(e.Text)), ModTime: time.Unix(1e9, 0), Uid: 12345, Gid: 12345}
		if e.Link != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, e.Link, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.Text)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := path.Join(m.VM().Place.Home, "a b'c", "deep")
	if err := m.Put(ctx(t), dir, &b); err != nil {
		t.Fatal(err)
	}
	if exit, err := m.Exec(ctx(t), guest.Cmd{Args: []string{"./run"}, Dir: dir}, nil); err != nil || exit.Code != 6 {
		t.Errorf("what was put does not run: %+v, %v", exit, err)
	}
	if diff := cmp.Diff(want, fetch(t, m, dir)); diff != "" {
		t.Errorf("the folder (-want +got):\n%s", diff)
	}
	if got := fetch(t, m, path.Join(dir, "empty")); !cmp.Equal(got, []entry{{Name: "empty"}}) {
		t.Errorf("an empty file: %+v", got)
	}
	if got := fetch(t, m, path.Join(dir, "link", "-x y'z")); len(got) != 1 || got[0].Name != "-x y'z" || got[0].Text != "odd name" {
		t.Errorf("a file: %+v", got)
	}
	if _, err := m.Get(ctx(t), "/nonesuch"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	var remote *guest.RemoteError
	if err := m.Put(ctx(t), dir, strings.NewReader(strings.Repeat("garbage!", 1000))); !errors.As(err, &remote) {
		t.Errorf("a tar that is none: %v", err)
	}
	if err := m.Put(ctx(t), "/etc/passwd/x", bytes.NewReader(make([]byte, 1024))); !errors.As(err, &remote) {
		t.Errorf("a folder below a file: %v", err)
	}
	broken := errors.New("the source broke")
	if err := m.Put(ctx(t), dir, io.MultiReader(strings.NewReader("abc"), errReader{broken})); !errors.Is(err, broken) {
		t.Errorf("a source that breaks: %v", err)
	}
}

func fetch(t *testing.T, m *Machine, name string) (out []entry) {
	t.Helper()
	r, err := m.Get(ctx(t), name)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer r.Close()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Error(err)
			return nil
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Error(err)
		}
		if h.Typeflag != tar.TypeDir {
			out = append(out, entry{strings.TrimPrefix(h.Name, "./"), h.Linkname, string(b)})
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// The original's other habits, one at a time.
func TestHabits(t *testing.T) {
	t.Run("refuses the token", func(t *testing.T) {
		_, c := fcctl(t, vmapitest.Habits{Token: "right"})
		c.cfg.Token = "wrong"
		if _, err := c.Start(ctx(t), CreateRequest{VMType: "x"}); status(err) != 401 || !strings.Contains(err.Error(), "FIRECRACKER_AUTH_TOKEN") {
			t.Errorf("%v", err)
		}
	})
	t.Run("machines fail", func(t *testing.T) {
		s, c := fcctl(t, vmapitest.Habits{Fails: true})
		if _, err := c.Start(ctx(t), CreateRequest{VMType: "x"}); err == nil || !strings.Contains(err.Error(), "failed") {
			t.Errorf("%v", err)
		}
		if now, ever := s.Machines(); now != 0 || ever != 1 {
			t.Errorf("%d of %d machines are left", now, ever)
		}
	})
	t.Run("never ready, and none is left", func(t *testing.T) {
		for name, h := range map[string]vmapitest.Habits{"creating": {BootPolls: 1e6, Forgets: true}, "ssh": {NotReady: 1e6}} {
			s, c := fcctl(t, h)
			late := errors.New("too late")
			short, cancel := context.WithTimeoutCause(context.Background(), 1200*time.Millisecond, late)
			defer cancel()
			if _, err := c.Start(short, CreateRequest{VMType: "x"}); !errors.Is(err, late) {
				t.Errorf("%s: %v", name, err)
			}
			if now, ever := s.Machines(); now != 0 || ever != 1 {
				t.Errorf("%s: %d of %d machines are left", name, now, ever)
			}
		}
	})
	t.Run("no exit code is a failure", func(t *testing.T) {
		s, c := fcctl(t, vmapitest.Habits{NoStatus: true})
		if _, err := c.Start(ctx(t), CreateRequest{VMType: "x"}); !errors.Is(err, ErrNoStatus) {
			t.Errorf("%v", err)
		}
		if now, _ := s.Machines(); now != 0 {
			t.Errorf("%d machines are left", now)
		}
	})
	t.Run("at capacity", func(t *testing.T) {
		_, c := fcctl(t, vmapitest.Habits{Capacity: 1})
		first, err := c.Start(ctx(t), CreateRequest{VMType: "x"})
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		if _, err := c.Start(short, CreateRequest{VMType: "x"}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "at_capacity") {
			t.Errorf("while it is full: %v", err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		second, err := c.Start(ctx(t), CreateRequest{VMType: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(second.Close(), second.Close()); err != nil { // the second time it is not there: 404
			t.Error(err)
		}
	})
	t.Run("not there", func(t *testing.T) {
		c, err := NewClient(ClientConfig{URL: "http://127.0.0.1:1"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Start(ctx(t), CreateRequest{}); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%v", err)
		}
		for _, bad := range []string{"", "127.0.0.1:8080", "ftp://x", "http://"} {
			if _, err := NewClient(ClientConfig{URL: bad}); err == nil {
				t.Errorf("the address %q is taken", bad)
			}
		}
	})
}

// A machine of the original kind that is gone is lost, not failed.
func TestLostMachine(t *testing.T) {
	s, c := fcctl(t, vmapitest.Habits{})
	m, err := c.Start(ctx(t), CreateRequest{VMType: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx(t), m.ID(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Exec(ctx(t), sh("true"), nil); !errors.Is(err, guest.ErrLost) {
		t.Errorf("exec: %v, want ErrLost", err)
	}
	if now, _ := s.Machines(); now != 0 {
		t.Errorf("%d machines", now)
	}
	if _, err := os.Stat(m.VM().Place.Home); err == nil {
		t.Error("the stand-in's machine has written on this host")
	}
}
