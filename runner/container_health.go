package runner

import (
	"context"
	"fmt"
	"time"
)

// Where an image or its options say nothing, these are docker's own.
const (
	checkInterval = 30 * time.Second
	checkTimeout  = 30 * time.Second
	checkRetries  = 3
	pollHealth    = time.Second // a service that is ready is not kept waiting longer than this
)

// awaitServices waits until every service runs, and those with a health check are healthy. It shows the log of one that
// does not become so.
func (e *engine) awaitServices(ctx context.Context, rec *record, list []*container) error {
	for _, c := range list {
		err := e.awaitService(ctx, rec, c)
		if err != nil {
			if ctx.Err() == nil && !isOurs(err) {
				e.showLogs(ctx, rec, c)
			}
			return err
		}
	}
	return nil
}

func (e *engine) awaitService(ctx context.Context, rec *record, c *container) error {
	begin := time.Now()
	for {
		if e.name == "podman" && c.now.Config.Healthcheck.checks() {
			// podman has nobody to run its checks. The verdict is in the description; the exit status says the same.
			if _, err := e.ask(ctx, e.cmd(nil, "healthcheck", "run", c.id)); isOurs(err) || ctx.Err() != nil {
				return err
			}
		}
		now, err := e.inspect(ctx, c.id)
		if err != nil {
			return err
		}
		c.now = now
		switch health(now, time.Since(begin)) {
		case ready:
			e.run.log(rec, c.name+" service is ready.")
			return nil
		case broken:
			status := now.State.Health.Status
			if !now.State.Running {
				status = fmt.Sprintf("ended, with exit code %d", now.State.ExitCode)
			}
			return userError("%s: failed to initialize: the service is %s", c.what(), excerpt(status))
		}
		e.run.debug(rec, c.name+" service is starting.")
		if err := e.run.pause(ctx, pollHealth); err != nil {
			return err
		}
	}
}

// verdict is what is known of a service.
type verdict int

const (
	starting verdict = iota
	ready
	broken
)

// health says how a container does that was started some time ago. One that is called unhealthy is given the whole time
// that its check has by its own settings: where we run the checks, we run them sooner than those say.
func health(c inspected, since time.Duration) verdict {
	switch h := c.Config.Healthcheck; {
	case !c.State.Running:
		return broken
	case !h.checks() || c.State.Health.Status == "healthy":
		return ready
	case since > h.patience():
		return broken
	}
	return starting
}

// patience is how long a container may take until it is healthy.
func (h *healthcheck) patience() time.Duration {
	or := func(d, def time.Duration) time.Duration {
		if d <= 0 {
			return def
		}
		return min(d, 24*time.Hour)
	}
	retries := time.Duration(h.Retries)
	if retries <= 0 || retries > 10_000 {
		retries = checkRetries
	}
	return or(h.StartPeriod, 0) + retries*(or(h.Interval, checkInterval)+or(h.Timeout, checkTimeout))
}

// showLogs shows what a container said.
func (e *engine) showLogs(ctx context.Context, rec *record, c *container) {
	c.logged = true
	e.run.log(rec, "##[group]Log of "+c.what())
	out := &logWriter{run: e.run, rec: rec}
	// The last lines say why; a service may have said a great deal before.
	_, err := e.run.config.Machine.Exec(ctx, e.cmd(nil, "logs", "--tail", "200", c.id), out)
	out.flush()
	if err != nil {
		e.run.log(rec, "The log cannot be read: "+err.Error())
	}
	e.run.log(rec, "##[endgroup]")
}
