package runner

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/terraphim/tgr/workflow"
)

// The bounds where a job states none, in minutes; they are GitHub's.
const (
	defaultTimeout       = 360
	defaultCancelTimeout = 5
)

// clock holds the contexts of a job. Two things can end: the job, which is then cancelled and winds up, and the time it
// has for winding up.
type clock struct {
	job     context.Context // ends when the job is cancelled or its time is up
	hard    context.Context // ends when nothing may run any more
	minutes float64
	grace   float64
	undo    []func()
	behind  func() time.Duration // how long ago what is being replayed happened; nil: it happens now
}

// errWindUp is the cause when a cancelled job took too long to wind up.
var errWindUp = errors.New("the job took too long to end after it was cancelled")

// start begins to count, as of some time ago. ctx is kept until stop.
func (c *clock) start(ctx context.Context, i workflow.Instance, ago time.Duration) {
	c.minutes, c.grace = i.TimeoutMinutes, i.CancelTimeout
	if !(c.minutes > 0) {
		c.minutes = defaultTimeout
	}
	if !(c.grace > 0) {
		c.grace = defaultCancelTimeout
	}
	job, cancelJob := context.WithTimeoutCause(ctx, left(c.minutes, ago), ErrTimeout)
	hard, cancelHard := context.WithCancelCause(context.WithoutCancel(ctx))
	c.job, c.hard = job, hard
	var windUp *time.Timer
	armed := make(chan struct{})
	stopAfter := context.AfterFunc(job, func() {
		windUp = time.AfterFunc(minutes(c.grace), func() { cancelHard(errWindUp) })
		close(armed)
	})
	c.undo = append(c.undo, func() {
		if !stopAfter() {
			<-armed
			windUp.Stop()
		}
		cancelJob()
		cancelHard(nil)
	})
}

// stop frees what start took.
func (c *clock) stop() {
	for _, f := range c.undo {
		f()
	}
}

// cancelled reports whether the job was cancelled or its time is up.
func (c *clock) cancelled() bool { return c.job.Err() != nil }

// cause is why the job was cancelled; nil: it was not.
func (c *clock) cause() error {
	if c.job.Err() == nil {
		return nil
	}
	return context.Cause(c.job)
}

// reason puts the cause into words.
func (c *clock) reason(runner string) string {
	switch cause := c.cause(); {
	case cause == nil:
		return ""
	case errors.Is(cause, ErrTimeout):
		return fmt.Sprintf("The job running on runner %s has exceeded the maximum execution time of %s minutes.", runner, number(c.minutes))
	case errors.Is(cause, context.Canceled):
		return "The operation was canceled."
	default:
		return "The operation was canceled: " + strings.TrimPrefix(cause.Error(), "cancelled: ")
	}
}

// errStepTimeout is the cause when a step's own time was up.
var errStepTimeout = errors.New("the step has timed out")

// limit bounds what one step and the steps within it may take; base is hard, or the bound of the step around it.
func (c *clock) limit(base context.Context, timeout float64) (context.Context, context.CancelFunc) {
	if timeout <= 0 {
		return context.WithCancel(base)
	}
	ago := time.Duration(0)
	if c.behind != nil {
		ago = c.behind()
	}
	return context.WithTimeoutCause(base, left(timeout, ago), errStepTimeout)
}

// cancellable makes the context of a step's own process, which ends with the job unless the step survives that.
func (c *clock) cancellable(limit context.Context, survives bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(limit)
	undo := func() bool { return true }
	if !survives {
		undo = context.AfterFunc(c.job, func() { cancel(context.Cause(c.job)) })
	}
	return ctx, func() {
		undo()
		cancel(nil)
	}
}

// left is what is left of a number of minutes. What began some time ago has at least the time to be replayed, so that the
// process whose time is up is found, and ended.
func left(m float64, ago time.Duration) time.Duration {
	if ago == 0 {
		return minutes(m)
	}
	return max(minutes(m)-ago, replayTime)
}

const replayTime = 2 * time.Second

// minutes turns a number of minutes, which may have a fraction, into a duration.
func minutes(m float64) time.Duration {
	return time.Duration(math.Min(m*float64(time.Minute), math.MaxInt64/2))
}
