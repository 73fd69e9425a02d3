package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// errSilent is the cause of an attempt's end when the agent has not answered.
var errSilent = errors.New("the agent does not answer")

// dialAgainAfter is how long the first attempt of Dial waits; each further one waits twice as long.
const dialAgainAfter = 5 * time.Second

// Dial connects to the agent behind dial, again and again until it answers or ctx ends: the first stream to a machine
// that was just restored may stay silent, and a second one ends it.
func Dial(ctx context.Context, dial func(context.Context) (net.Conn, error)) (*Client, error) {
	for wait := dialAgainAfter; ; wait *= 2 {
		attempt, cancel := context.WithTimeoutCause(ctx, wait, errSilent)
		client, err := dialOnce(attempt, dial)
		again := ctx.Err() == nil && errors.Is(context.Cause(attempt), errSilent)
		cancel()
		if err == nil || !again {
			return client, err
		}
	}
}

func dialOnce(ctx context.Context, dial func(context.Context) (net.Conn, error)) (*Client, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial the agent: %w", err)
	}
	client, err := Connect(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("greet the agent: %w", err)
	}
	return client, nil
}
