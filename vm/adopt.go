package vm

import (
	"context"
	"errors"
)

// Adopter is a Provider whose machines can outlive the server that started them. It is found by type assertion.
type Adopter interface {
	// Adopt takes over a machine that an earlier server has left running, by its entry in the journal, which Reap was
	// told to keep. The machine is as Start would have returned it, and its agent waits to be dialled; its network keeps the
	// policy it had, but for names, of which none is let through until SetEgress is called. After an error nothing of it is
	// left. ErrNotAdoptable is a provider that cannot do that.
	Adopt(ctx context.Context, id string) (VM, error)
}

// ErrNotAdoptable is a machine that does not outlive its server.
var ErrNotAdoptable = errors.New("machines of this kind end with the server that started them")

// Adopt takes over a machine of a provider, if that is an Adopter.
func Adopt(ctx context.Context, p Provider, id string) (VM, error) {
	if a, ok := p.(Adopter); ok {
		return a.Adopt(ctx, id)
	}
	return nil, ErrNotAdoptable
}

// Survivor is a VM that can outlive its server. It is found by type assertion.
type Survivor interface {
	// Leave lets go of the machine, which goes on: for a server that ends, and is followed by one that adopts it. Only
	// Close may be called after it, and does nothing.
	Leave() error
}
