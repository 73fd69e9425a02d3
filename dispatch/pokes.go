package dispatch

import (
	"sync"

	"github.com/terraphim/tgr"
)

// pokes has the leases of a run beat at once, when its jobs may have been cancelled. The zero value is ready.
type pokes struct {
	mu   sync.Mutex
	runs map[tgr.RunID]map[chan struct{}]bool
}

// add returns a channel that gets a value when the run is poked, until end is called.
func (p *pokes) add(run tgr.RunID) (poked <-chan struct{}, end func()) {
	ch := make(chan struct{}, 1) // one value stands for all
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runs == nil {
		p.runs = map[tgr.RunID]map[chan struct{}]bool{}
	}
	if p.runs[run] == nil {
		p.runs[run] = map[chan struct{}]bool{}
	}
	p.runs[run][ch] = true
	return ch, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(p.runs[run], ch); len(p.runs[run]) == 0 {
			delete(p.runs, run)
		}
	}
}

func (p *pokes) poke(run tgr.RunID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ch := range p.runs[run] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Cancelled has the jobs of a run that run here look at once whether they are to be cancelled. Without it they look every
// two seconds. It never blocks.
func (d *Dispatcher) Cancelled(run tgr.RunID) { d.pokes.poke(run) }
