package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminalOutput is what a terminal shows; until waits for a text in it.
type terminalOutput struct {
	t    *testing.T
	news chan []byte
	all  bytes.Buffer
}

func (o *terminalOutput) Write(b []byte) (int, error) {
	o.news <- bytes.Clone(b)
	return len(b), nil
}

func (o *terminalOutput) until(text string) {
	o.t.Helper()
	late := time.After(20 * time.Second)
	for !strings.Contains(o.all.String(), text) {
		select {
		case b := <-o.news:
			o.all.Write(b)
		case <-late:
			o.t.Fatalf("no %q in what the terminal shows: %q", text, o.all.String())
		}
	}
}

func TestTerminal(t *testing.T) {
	needTerminals(t)
	c := agent(t, ServerConfig{})
	in, keys := io.Pipe()
	out := &terminalOutput{t: t, news: make(chan []byte, 64)}
	cmd := Cmd{ID: "shell", Stdin: in, TTY: &WindowSize{Rows: 24, Cols: 80}, Args: []string{"/bin/sh"},
		Env: []string{"PATH=/usr/bin:/bin", "PS1=> "}}
	ended := make(chan Exit, 1)
	go func() {
		exit, err := c.Exec(context.Background(), cmd, out)
		if err != nil {
			t.Error(err)
		}
		ended <- exit
	}()
	out.until("> ")
	io.WriteString(keys, "test -t 0 && test -t 1 && test -t 2 && echo its a ter''minal\n")
	out.until("its a terminal")
	io.WriteString(keys, "stty size\n")
	out.until("24 80")
	if err := c.Resize(t.Context(), "shell", WindowSize{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(keys, "stty size\n")
	out.until("50 132")
	// The interrupt character ends what runs in the foreground, not the shell.
	io.WriteString(keys, "sh -c 'echo be\"\"gun; exec sleep 1000'\n")
	out.until("begun")
	keys.Write([]byte{3})
	out.all.Reset()
	io.WriteString(keys, "echo still he''re\n")
	out.until("still here")
	io.WriteString(keys, "(exit 7)\n")
	keys.Close() // the end of input ends the shell, with the last status
	select {
	case exit := <-ended:
		if exit.Code != 7 || exit.Signal != "" {
			t.Errorf("exit %+v, want status 7", exit)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the end of input did not end the shell")
	}
}

func TestTerminalCancel(t *testing.T) {
	needTerminals(t)
	c := agent(t, ServerConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	exit, err := c.Exec(ctx, Cmd{TTY: &WindowSize{Rows: 1, Cols: 1}, Args: []string{"/bin/sleep", "1000"}}, nil)
	if !errors.Is(err, context.DeadlineExceeded) || exit.Signal != "SIGKILL" {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestTerminalRefusals(t *testing.T) {
	c := agent(t, ServerConfig{})
	if _, err := c.Exec(t.Context(), Cmd{Args: []string{"/bin/true"}, TTY: &WindowSize{}, Stderr: io.Discard}, nil); err == nil {
		t.Error("a terminal with standard error apart")
	}
	if err := c.Resize(t.Context(), "nonesuch", WindowSize{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("resize of nothing: %v", err)
	}
	id, err := c.Start(t.Context(), Cmd{Args: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Resize(t.Context(), id, WindowSize{}); !errors.Is(err, ErrRefused) {
		t.Errorf("resize of a process without a terminal: %v", err)
	}
	if _, err := c.simple(t.Context(), &request{Op: opResize, ID: id}); !errors.Is(err, ErrRefused) {
		t.Errorf("resize without a size: %v", err)
	}
}

func needTerminals(t *testing.T) {
	t.Helper()
	host, theirs, err := openTerminal()
	if err != nil {
		t.Skipf("NOT TESTED: this machine makes no terminals: %v", err)
	}
	host.Close()
	unix.Close(theirs)
}
