package vmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// output runs a script that must succeed, and returns what it says.
func (s *suite) output(t *testing.T, c *guest.Client, script string) string {
	t.Helper()
	var out bytes.Buffer
	exit, err := c.Exec(s.ctx(t), s.sh(script), &out)
	if err != nil || !exit.Success() {
		t.Fatalf("%s: %+v, %v, output %q", script, exit, err, &out)
	}
	return out.String()
}

func (s *suite) exit(t *testing.T, c *guest.Client) {
	for _, tt := range []struct {
		name string
		cmd  guest.Cmd
		want guest.Exit
	}{
		{"success", s.sh("exit 0"), guest.Exit{Started: true}},
		{"1", s.sh("exit 1"), guest.Exit{Started: true, Code: 1}},
		{"128", s.sh("exit 128"), guest.Exit{Started: true, Code: 128}},
		{"137 is no signal", s.sh("exit 137"), guest.Exit{Started: true, Code: 137}},
		{"255", s.sh("exit 255"), guest.Exit{Started: true, Code: 255}},
		{"SIGKILL", s.sh("kill -KILL $$"), guest.Exit{Started: true, Code: 137, Signal: "SIGKILL"}},
		{"SIGTERM", s.sh("kill -TERM $$"), guest.Exit{Started: true, Code: 143, Signal: "SIGTERM"}},
		{"SIGSEGV", s.sh("kill -SEGV $$"), guest.Exit{Started: true, Code: 139, Signal: "SIGSEGV"}},
		{"not found", guest.Cmd{Args: []string{"nonesuch-program"}, Env: []string{"PATH=/bin"}}, guest.Exit{Code: 127}},
		{"not executable", guest.Cmd{Args: []string{"/etc/passwd"}}, guest.Exit{Code: 126}},
		{"no such folder", guest.Cmd{Args: []string{"/bin/true"}, Dir: "/nonesuch"}, guest.Exit{Code: 126}},
		{"no program", guest.Cmd{}, guest.Exit{Code: 127}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := c.Exec(s.ctx(t), tt.cmd, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !got.Started && got.Message == "" {
				t.Error("no message says why it was not started")
			}
			got.Message, got.Duration, got.CPU, got.Memory = "", 0, 0, 0
			if got != tt.want {
				t.Errorf("exit %+v, want %+v", got, tt.want)
			}
		})
	}
}

// usage: the agent tells the processor time of a process and its children, and the memory that is used meanwhile, where it
// has a machine to look at.
func (s *suite) usage(t *testing.T, c *guest.Client) {
	const held = 48 << 20
	script := fmt.Sprintf("head -c %d /dev/zero >/dev/shm/vmtest-held; end=$(($(date +%%s)+3)); (while [ $(date +%%s) -lt $end ]; do :; done); rm /dev/shm/vmtest-held", held)
	exit, err := c.Exec(s.ctx(t), s.sh(script), nil)
	if err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	if exit.CPU <= 10*time.Millisecond || exit.CPU > 2*exit.Duration+time.Second {
		t.Errorf("a process that was busy for three seconds took %v of the processors in %v", exit.CPU, exit.Duration)
	}
	switch {
	case !s.Memory && exit.Memory != 0:
		t.Errorf("the agent has no machine to itself, and says that %d bytes are in use", exit.Memory)
	case s.Memory && (exit.Memory < held || s.Spec.Memory > 0 && exit.Memory > s.Spec.Memory):
		t.Errorf("%d bytes seen in use while %d were held, in a machine of %d", exit.Memory, held, s.Spec.Memory)
	}
	if exit, err = c.Exec(s.ctx(t), s.sh("exit 1"), nil); err != nil || exit.Shortage != "" {
		t.Errorf("it says that memory ran out: %+v, %v", exit, err)
	}
}

// streams: apart where asked for, else in the order in which they were written.
func (s *suite) streams(t *testing.T, c *guest.Client) {
	const script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done"
	if got, want := s.output(t, c, script), "out1\nerr1\nout2\nerr2\nout3\nerr3\n"; got != want {
		t.Errorf("together: %q, want %q", got, want)
	}
	var out, errout bytes.Buffer
	cmd := s.sh(script)
	cmd.Stderr = &errout
	if exit, err := c.Exec(s.ctx(t), cmd, &out); err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	if got, want := out.String(), "out1\nout2\nout3\n"; got != want {
		t.Errorf("standard output: %q, want %q", got, want)
	}
	if got, want := errout.String(), "err1\nerr2\nerr3\n"; got != want {
		t.Errorf("standard error: %q, want %q", got, want)
	}
}

// environment: exactly what was given, bytes that are not UTF-8 too, and the folder.
func (s *suite) environment(t *testing.T, c *guest.Client) {
	var out bytes.Buffer
	cmd := guest.Cmd{Args: []string{"env", "-0"}, Env: []string{"PATH=/usr/bin:/bin", "A=1\n2", "B=\xff\xfe", "C="}, Dir: "/etc"}
	if exit, err := c.Exec(s.ctx(t), cmd, &out); err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	if got, want := out.String(), strings.Join(cmd.Env, "\x00")+"\x00"; got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
	out.Reset()
	cmd.Args = []string{"pwd"}
	if _, err := c.Exec(s.ctx(t), cmd, &out); err != nil || out.String() != "/etc\n" {
		t.Errorf("folder %q, %v", &out, err)
	}
	out.Reset()
	cmd.Args = []string{"printf", "%s|", "a b", "", "\xff", "$HOME"}
	if _, err := c.Exec(s.ctx(t), cmd, &out); err != nil || out.String() != "a b||\xff|$HOME|" {
		t.Errorf("arguments %q, %v", &out, err)
	}
}

func (s *suite) stdin(t *testing.T, c *guest.Client) {
	in := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16) // 1 MiB
	cmd := s.sh("cat")
	cmd.Stdin = bytes.NewReader(in)
	var out bytes.Buffer
	if exit, err := c.Exec(s.ctx(t), cmd, &out); err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	if !bytes.Equal(out.Bytes(), in) {
		t.Errorf("%d bytes came back, and not those %d that were sent", out.Len(), len(in))
	}
	// One that is not read, and never ends, holds nothing up.
	r, w := io.Pipe()
	defer w.Close()
	cmd = s.sh("exit 5")
	cmd.Stdin = r
	if exit, err := c.Exec(s.ctx(t), cmd, nil); err != nil || exit.Code != 5 {
		t.Errorf("with unread input: %+v, %v", exit, err)
	}
	if got := s.output(t, c, "cat"); got != "" {
		t.Errorf("without input: %q", got)
	}
}

// trickle: 64 KiB/s arrive while they are written, not in the end.
func (s *suite) trickle(t *testing.T, c *guest.Client) {
	const pieces = trickleSeconds * 8
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do head -c 8192 /dev/zero; sleep 0.125; i=$((i+1)); done", pieces)
	var first time.Time
	total := 0
	exit, err := c.Exec(s.ctx(t), s.sh(script), writerFunc(func(b []byte) (int, error) {
		if total == 0 {
			first = time.Now()
		}
		total += len(b)
		return len(b), nil
	}))
	if err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	if total != pieces*8192 {
		t.Errorf("%d bytes, want %d", total, pieces*8192)
	}
	if ahead := time.Since(first); ahead < trickleSeconds*time.Second/2 {
		t.Errorf("the first byte came only %v before the end", ahead)
	}
}

// flood: every byte of a large output, through a sink that stalls.
func (s *suite) flood(t *testing.T, c *guest.Client) {
	const lines = 100_000
	sum, n := sha256.New(), 0
	exit, err := c.Exec(s.ctx(t), s.sh("seq "+strconv.Itoa(lines)), writerFunc(func(b []byte) (int, error) {
		if n++; n%4 == 0 {
			time.Sleep(5 * time.Millisecond) // slower than the machine
		}
		return sum.Write(b)
	}))
	if err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	want := sha256.New()
	for i := range lines {
		fmt.Fprintln(want, i+1)
	}
	if !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
		t.Error("the output is not what was written")
	}

	size := int64(s.OutputMB) << 20
	var count counter
	begin := time.Now()
	exit, err = c.Exec(context.Background(), s.sh(fmt.Sprintf("exec head -c %d /dev/zero", size)), &count)
	if err != nil || !exit.Success() {
		t.Fatalf("%+v, %v", exit, err)
	}
	if int64(count) != size {
		t.Errorf("%d bytes, want %d", count, size)
	}
	t.Logf("%d MiB at %.0f MB/s", s.OutputMB, float64(size)/1e6/time.Since(begin).Seconds())
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// cancel: the whole group goes, also where it ignores what it can, and the cause comes back.
func (s *suite) cancel(t *testing.T, c *guest.Client) {
	why := errors.New("cancelled by the suite")
	var out bytes.Buffer
	var once sync.Once
	ctx, cancel := context.WithCancelCause(s.ctx(t))
	defer cancel(nil)
	cmd := s.sh("trap '' INT TERM; sh -c 'while :; do sleep 1; done' & echo $!; while :; do sleep 1; done")
	cmd.Grace = 200 * time.Millisecond
	exit, err := c.Exec(ctx, cmd, writerFunc(func(b []byte) (int, error) {
		out.Write(b)
		if bytes.HasSuffix(out.Bytes(), []byte("\n")) {
			once.Do(func() { cancel(why) })
		}
		return len(b), nil
	}))
	if !errors.Is(err, why) {
		t.Errorf("error %v, want the cause", err)
	}
	if exit.Signal != "SIGKILL" || exit.Code != 137 {
		t.Errorf("exit %+v, want SIGKILL", exit)
	}
	s.gone(t, c, strings.TrimSpace(out.String()))
}

// gone waits until a process of the machine is no more, or only waits to be buried.
func (s *suite) gone(t *testing.T, c *guest.Client, pid string) {
	t.Helper()
	const script = "for i in $(seq 100); do case \"$(cut -d' ' -f3 /proc/%s/stat 2>/dev/null)\" in ''|Z|X) exit 0;; esac; sleep 0.1; done; exit 1"
	exit, err := c.Exec(s.ctx(t), s.sh(fmt.Sprintf(script, pid)), nil)
	if err != nil || !exit.Success() {
		t.Errorf("process %s is still there: %+v, %v", pid, exit, err)
	}
}

// background: what holds the output open does not hold up the exit, goes on, and loses nothing written before.
func (s *suite) background(t *testing.T, c *guest.Client) {
	begin := time.Now()
	out := s.output(t, c, "sleep 1000 & echo $!; seq 20000 | tail -n 1")
	if took := time.Since(begin); took > s.Within/2 {
		t.Errorf("took %v", took)
	}
	pid, rest, _ := strings.Cut(out, "\n")
	if rest != "20000\n" {
		t.Errorf("output %q", out)
	}
	s.output(t, c, "kill -0 "+pid+" && kill "+pid)
}

func (s *suite) signal(t *testing.T, c *guest.Client) {
	cmd := s.sh("trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done")
	cmd.ID = "signalled"
	var once sync.Once
	exit, err := c.Exec(s.ctx(t), cmd, writerFunc(func(b []byte) (int, error) {
		once.Do(func() {
			if err := c.Signal(s.ctx(t), "signalled", syscall.SIGUSR1); err != nil {
				t.Errorf("signal: %v", err)
			}
		})
		return len(b), nil
	}))
	if err != nil || exit.Code != 9 {
		t.Errorf("%+v, %v; want status 9", exit, err)
	}
	if err := c.Signal(s.ctx(t), "nonesuch", syscall.SIGTERM); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("signal to nobody: %v; want fs.ErrNotExist", err)
	}
}

// concurrent: fifty at once, each with its own output.
func (s *suite) concurrent(t *testing.T, c *guest.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*s.Within)
	defer cancel()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			var out bytes.Buffer
			script := fmt.Sprintf("i=0; while [ $i -lt 100 ]; do echo %d-$i; i=$((i+1)); done; exit %d", i, i)
			exit, err := c.Exec(ctx, s.sh(script), &out)
			if err != nil || exit.Code != i {
				t.Errorf("%d: %+v, %v", i, exit, err)
			}
			var want strings.Builder
			for n := range 100 {
				fmt.Fprintf(&want, "%d-%d\n", i, n)
			}
			if out.String() != want.String() {
				t.Errorf("%d: output %q", i, &out)
			}
		})
	}
	all.Wait()
}

// reattach: a process outlives its stream, and its output has neither gap nor repetition.
func (s *suite) reattach(t *testing.T, m vm.VM) {
	c := s.connect(t, m)
	cmd := s.sh("i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); [ $((i%10)) = 0 ] && sleep 0.01; done; exit 6")
	cmd.ID = "attached"
	var out bytes.Buffer
	_, err := c.Exec(s.ctx(t), cmd, writerFunc(func(b []byte) (int, error) {
		out.Write(b)
		if out.Len() > 200 {
			go c.Close()
			<-c.Done()
		}
		return len(b), nil
	}))
	if err == nil {
		t.Fatal("exec survived the end of its stream")
	}
	c.Close()

	c = s.connect(t, m)
	defer c.Close()
	exit, err := c.Attach(s.ctx(t), guest.Attachment{ID: "attached", From: uint64(out.Len()), Out: &out})
	if err != nil || exit.Code != 6 {
		t.Errorf("attach: %+v, %v; want status 6", exit, err)
	}
	var want strings.Builder
	for i := range 300 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if out.String() != want.String() {
		t.Errorf("output of both sessions, %d bytes: %q", out.Len(), &out)
	}
	// Once the agent knows that the exit has arrived, it forgets the process.
	for err, ctx := error(nil), s.ctx(t); !errors.Is(err, fs.ErrNotExist); {
		if _, err = c.Attach(ctx, guest.Attachment{ID: "attached"}); ctx.Err() != nil {
			t.Fatalf("attach to what is over: %v; want fs.ErrNotExist", err)
		}
	}
}

// oneStream: a second host gets the agent, and the first notices.
func (s *suite) oneStream(t *testing.T, m vm.VM) {
	first := s.connect(t, m)
	defer first.Close()
	second := s.connect(t, m)
	defer second.Close()
	if got := s.output(t, second, "echo second"); got != "second\n" {
		t.Errorf("output %q", got)
	}
	if _, err := first.Exec(s.ctx(t), s.sh("true"), nil); err == nil {
		t.Error("the first stream still works")
	}
}
