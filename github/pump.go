package github

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr"
	"golang.org/x/time/rate"
)

// Report is a report that is due.
type Report struct {
	Key      string
	Version  int64 // of Body; a newer one may come while this one is delivered
	Body     []byte
	RemoteID string // what the last delivery of this key returned; "" before the first
	Tries    int    // failed deliveries since the last success
}

// Outbox is where reports wait, durably. Of one key only the last body counts, so that what GitHub shows in the end
// is the last state, whatever was lost in between.
type Outbox interface {
	NextReports(ctx context.Context, now time.Time, limit int) ([]Report, error)
	ReportDone(ctx context.Context, key string, version int64, remoteID string) error
	ReportRetry(ctx context.Context, key string, version int64, at time.Time, reason string) error
	ReportDefer(ctx context.Context, key string, version int64, at time.Time) error // another one has failed
	ReportDrop(ctx context.Context, key string, version int64, reason string) error
}

// PumpConfig is what a Pump is made of. Outbox and Deliver are required.
type PumpConfig struct {
	Outbox  Outbox
	Deliver func(ctx context.Context, kind string, body []byte, remoteID string) (newRemoteID string, retryAfter time.Duration, err error)
	// Wake tells that there may be something new; it should have a capacity of one. nil: only Interval does.
	Wake     <-chan struct{}
	Interval time.Duration // between looks at the outbox without a wake; 0: 5 s
	Pace     rate.Limit    // reports per second to one owner's repositories, after a burst of 60; 0: 1, as GitHub asks for
	Parallel int           // owners at once; 0: 4
	Log      *slog.Logger
	Now      func() time.Time
}

// Pump moves reports from the outbox to GitHub: those of one owner one after the other, since limits are per
// installation, and of several owners at the same time. There must be only one for an outbox.
type Pump struct {
	c PumpConfig

	mu     sync.Mutex
	paces  map[string]*rate.Limiter // by owner
	pauses map[string]time.Time     // by owner: until when GitHub asked for a pause, or is thought not to be there
	remote map[string]string        // remote ids that a failed delivery returned, by key: what was made is not made twice
}

// NewPump fills in the defaults.
func NewPump(c PumpConfig) *Pump {
	if c.Interval <= 0 {
		c.Interval = 5 * time.Second
	}
	if c.Pace <= 0 {
		c.Pace = 1
	}
	if c.Parallel <= 0 {
		c.Parallel = 4
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Pump{c: c, paces: make(map[string]*rate.Limiter), pauses: make(map[string]time.Time), remote: make(map[string]string)}
}

const (
	pumpBatch    = 100
	paceBurst    = 60
	firstBackoff = 2 * time.Second
	lastBackoff  = 5 * time.Minute
)

// Run delivers reports until ctx ends. It returns nil then; a failing outbox is logged and tried again.
func (p *Pump) Run(ctx context.Context) error {
	tick := time.NewTicker(p.c.Interval)
	defer tick.Stop()
	for {
		n, err := p.Once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			p.c.Log.Error("read the outbox of reports", "error", err)
		} else if n == pumpBatch {
			continue // there is more
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.c.Wake:
		case <-tick.C:
		}
	}
}

// Once delivers what is due now, at most a batch, and returns how many reports that were.
func (p *Pump) Once(ctx context.Context) (int, error) {
	due, err := p.c.Outbox.NextReports(ctx, p.c.Now(), pumpBatch)
	if err != nil {
		return 0, err
	}
	var owners []string
	groups := make(map[string][]Report)
	for _, r := range due {
		o := ownerOf(r)
		if groups[o] == nil {
			owners = append(owners, o)
		}
		groups[o] = append(groups[o], r)
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, p.c.Parallel)
	for _, o := range owners {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			p.group(ctx, o, groups[o])
		})
	}
	wg.Wait()
	return len(due), nil
}

// ownerOf is the account whose limits a report counts against.
func ownerOf(r Report) string {
	var body struct {
		Repo string `json:"repo"`
	}
	if json.Unmarshal(r.Body, &body) != nil {
		return ""
	}
	owner, _, _ := strings.Cut(body.Repo, "/")
	return strings.ToLower(owner)
}

// group delivers the reports of one owner in order. When GitHub asks for a pause, or does not answer, all the rest wait.
func (p *Pump) group(ctx context.Context, owner string, reports []Report) {
	if until := p.pause(owner); until.After(p.c.Now()) {
		p.putOff(ctx, reports, until) // what is new since then
		return
	}
	for i, r := range reports {
		if p.pace(owner).Wait(ctx) != nil {
			return // stopping: the reports stay due
		}
		wait, err := p.deliver(ctx, r)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.c.Log.Error("record what became of a report", "report", r.Key, "error", err)
			wait = firstBackoff // it will be sent again: not at once
		}
		if err == nil && wait == 0 {
			continue
		}
		until := p.c.Now().Add(wait)
		p.mu.Lock()
		p.pauses[owner] = until
		p.mu.Unlock()
		p.putOff(ctx, reports[i+1:], until)
		return
	}
}

// pause returns until when an owner's reports are to wait, and forgets it when that is over.
func (p *Pump) pause(owner string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	until := p.pauses[owner]
	if !until.After(p.c.Now()) {
		delete(p.pauses, owner)
	}
	return until
}

func (p *Pump) putOff(ctx context.Context, reports []Report, until time.Time) {
	for _, r := range reports {
		if err := p.c.Outbox.ReportDefer(ctx, r.Key, r.Version, until); err != nil {
			p.c.Log.Error("put off a report", "report", r.Key, "error", err)
		}
	}
}

func (p *Pump) pace(owner string) *rate.Limiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.paces[owner]
	if l == nil {
		if len(p.paces) > 10_000 {
			clear(p.paces) // a pause too few is better than a map without bound
		}
		l = rate.NewLimiter(p.c.Pace, paceBurst)
		p.paces[owner] = l
	}
	return l
}

// deliver tries one report and records what became of it. wait > 0: the owner's other reports are to wait so long.
// The error is the outbox's.
func (p *Pump) deliver(ctx context.Context, r Report) (wait time.Duration, err error) {
	kind, _, _ := strings.Cut(r.Key, "/")
	p.mu.Lock()
	remote := p.remote[r.Key]
	p.mu.Unlock()
	if remote == "" {
		remote = r.RemoteID
	}
	remote, after, failed := p.c.Deliver(ctx, kind, r.Body, remote)
	if failed != nil && ctx.Err() != nil {
		return 0, nil // stopping: the next start tries again
	}
	code := tgr.CodeOf(failed)
	again := code == tgr.Unavailable || code == tgr.Limit
	p.mu.Lock()
	delete(p.remote, r.Key)
	if again && remote != r.RemoteID {
		p.remote[r.Key] = remote
	}
	p.mu.Unlock()
	switch {
	case failed == nil:
		return 0, p.c.Outbox.ReportDone(ctx, r.Key, r.Version, remote)
	case again:
		if wait = after; wait <= 0 {
			wait = backoff(r.Tries)
		}
		p.c.Log.Warn("a report will be sent again", "report", r.Key, "tries", r.Tries+1, "after", wait, "error", failed)
		return wait, p.c.Outbox.ReportRetry(ctx, r.Key, r.Version, p.c.Now().Add(wait), failed.Error())
	}
	p.c.Log.Error("a report was refused", "report", r.Key, "error", failed)
	return 0, p.c.Outbox.ReportDrop(ctx, r.Key, r.Version, failed.Error())
}

// backoff doubles from 2 s to 5 min, a quarter more or less, so that many do not come back together.
func backoff(tries int) time.Duration {
	d := lastBackoff
	if tries < 10 {
		d = min(firstBackoff<<tries, lastBackoff)
	}
	return d*3/4 + rand.N(d/2)
}
