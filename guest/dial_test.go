package guest

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A stream that stays silent is given up for a second one, which the agent answers.
func TestDialAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var silent net.Conn
		dials := 0
		began := time.Now()
		c, err := Dial(t.Context(), func(context.Context) (net.Conn, error) {
			host, agent := net.Pipe()
			if dials++; dials == 1 {
				silent = agent
				return host, nil
			}
			go Serve(context.Background(), agent, ServerConfig{})
			return host, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); dials != 2 || took < dialAgainAfter || took > 2*dialAgainAfter {
			t.Errorf("%d attempts in %v", dials, took)
		}
		c.Close()
		silent.Close()
		synctest.Wait()
	})
}

func TestDialFails(t *testing.T) {
	broken := errors.New("no such machine")
	if _, err := Dial(t.Context(), func(context.Context) (net.Conn, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want the error of dialling", err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("enough"))
	defer cancel()
	_, err := Dial(ctx, func(context.Context) (net.Conn, error) {
		host, agent := net.Pipe()
		t.Cleanup(func() { agent.Close() })
		return host, nil
	})
	if err == nil || errors.Is(err, errSilent) {
		t.Errorf("got %v, want the end of the context", err)
	}
}
