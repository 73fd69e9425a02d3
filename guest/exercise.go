package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"time"
)

// Exercise greets the agent on conn, prepares the machine, runs cmd, and closes the stream. It is for a machine that no job has yet, be it
// to take a snapshot of it or to have it wait: what was run once is in memory, and starts sooner the next time. A
// command that does not succeed is an error with the end of its output.
func Exercise(ctx context.Context, conn net.Conn, cmd Cmd) error {
	c, err := Connect(ctx, conn)
	if err != nil {
		return err
	}
	defer c.Close()
	id := Identity{Hostname: c.Hello().Hostname, Time: time.Now(), Entropy: []byte(rand.Text() + rand.Text())}
	if err := c.Prepare(ctx, id); err != nil && !errors.Is(err, ErrRefused) {
		return err
	}
	var out lastBytes
	exit, err := c.Exec(ctx, cmd, &out)
	if err != nil {
		return err
	}
	if !exit.Success() {
		return fmt.Errorf("%.100q: status %d %s%s: %s", cmd.Args, exit.Code, exit.Signal, exit.Message, out.b)
	}
	return nil
}

// WarmUp is Exercise of a machine whose snapshot is taken next, on a stream that dial opens. It leaves another open, on which the
// agent was only asked who it is: clones begin with that, and with what their agents have found out.
func WarmUp(ctx context.Context, dial func(context.Context) (net.Conn, error), cmd Cmd) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	if err := Exercise(ctx, conn, cmd); err != nil {
		return err
	}
	if conn, err = dial(ctx); err != nil {
		return err
	}
	_, err = Hail(ctx, conn)
	return err
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct{ b []byte }

func (l *lastBytes) Write(b []byte) (int, error) {
	const most = 1 << 10
	l.b = append(l.b, b...)
	l.b = append(l.b[:0], l.b[max(0, len(l.b)-most):]...)
	return len(b), nil
}
