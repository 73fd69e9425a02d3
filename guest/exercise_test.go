package guest

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestExercise(t *testing.T) {
	exercise := func(cmd Cmd) error {
		t.Helper()
		host, guest := socketpair(t)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- Serve(ctx, guest, ServerConfig{}) }()
		err := Exercise(t.Context(), host, cmd)
		if _, werr := host.Write([]byte("x")); werr == nil {
			t.Error("the stream is open")
		}
		cancel()
		<-served
		return err
	}
	if err := exercise(sh("exit 0")); err != nil {
		t.Error(err)
	}
	err := exercise(sh("head -c 100000 /dev/zero | tr '\\0' x; echo last words >&2; exit 3"))
	if err == nil || !strings.HasSuffix(err.Error(), "last words\n") || !strings.Contains(err.Error(), "status 3") || len(err.Error()) > 2000 {
		t.Errorf("got %.3000v", err)
	}
	if err := exercise(Cmd{Args: []string{"/nonexistent"}}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
	host, guest := socketpair(t)
	guest.Close()
	if err := Exercise(t.Context(), host, sh("true")); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("nobody at the other end: %v", err)
	}
}
