package dispatch

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// Greeter makes machines of a pool their own while they wait, so that a job has nothing to wait for: the stream to the
// agent is open, the machine has entropy and ids that no other has, and what jobs run first has been run. Only the
// clock and the name are set when the machine is given out. It is safe for concurrent use.
type Greeter struct {
	// Exercise runs what jobs run first; nil: nothing. It leaves nothing behind.
	Exercise func(ctx context.Context, c *guest.Client) error

	mu      sync.Mutex
	clients map[vm.VM]*guest.Client
}

// Greet is vm.PoolConfig.Greet.
func (g *Greeter) Greet(ctx context.Context, m vm.VM) error {
	c, err := guest.Dial(ctx, m.Dial)
	if err != nil {
		return err
	}
	if err := g.settle(ctx, c); err != nil {
		c.Close()
		return err
	}
	g.mu.Lock()
	if g.clients == nil {
		g.clients = map[vm.VM]*guest.Client{}
	}
	g.clients[m] = c
	g.mu.Unlock()
	go func() {
		<-c.Done()
		if g.take(m) != nil { // it died, or was freed, while it waited
			c.Close()
		}
	}()
	return nil
}

// settle makes the machine one of its own.
func (g *Greeter) settle(ctx context.Context, c *guest.Client) error {
	id := guest.Identity{Hostname: "waiting", Time: time.Now(), Entropy: entropy()}
	if err := c.Prepare(ctx, id); err != nil {
		return fmt.Errorf("prepare the machine: %w", err)
	}
	if g.Exercise == nil {
		return nil
	}
	if err := g.Exercise(ctx, c); err != nil {
		return fmt.Errorf("exercise the machine: %w", err)
	}
	return nil
}

// take returns the client of a machine that was greeted, once, or nil.
func (g *Greeter) take(m vm.VM) *guest.Client {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.clients[m]
	delete(g.clients, m)
	return c
}

// entropy is what one machine is given for its kernel's generator and its ids.
func entropy() []byte {
	b := make([]byte, 64)
	rand.Read(b)
	return b
}
