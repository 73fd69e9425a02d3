package vm

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReapKeeps keeps a machine with all that it needs, and nothing else.
func TestReapKeeps(t *testing.T) {
	j := Journal{Dir: t.TempDir(), Volatile: true}
	for _, id := range []string{"net-a", "net-b", "machine", "other"} {
		r, err := j.Open(id, "test")
		if err != nil {
			t.Fatal(err)
		}
		if id == "machine" {
			if err := r.AddNeed("net-a", "gone"); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"net-a", "gone"}, r.Entry().Needs); diff != "" {
				t.Error(diff)
			}
		}
		abandon(t, r)
	}
	reaped, err := j.Reap(t.Context(), func(id string) bool { return id == "machine" })
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, r := range reaped {
		ids = append(ids, r.ID)
	}
	if diff := cmp.Diff([]string{"net-b", "other"}, ids); diff != "" {
		t.Errorf("reaped (-want +got):\n%s", diff)
	}
	r, err := j.Adopt("machine")
	if err != nil || !cmp.Equal(r.Entry().Needs, []string{"net-a", "gone"}) {
		t.Errorf("adopted %+v, %v", r.Entry(), err)
	}
}

// abandon makes the owner of an entry a process that has ended.
func abandon(t *testing.T, r *Record) {
	t.Helper()
	owner := r.entry.Owner
	owner.Start--
	if err := appendLine(r.dir+"/"+journalFile, line{Owner: &owner}, false); err != nil {
		t.Fatal(err)
	}
}

// TestAdoptRefuses says of providers whose machines end with the server that they do.
func TestAdoptRefuses(t *testing.T) {
	if _, err := Adopt(t.Context(), startNothing{}, "x"); !errors.Is(err, ErrNotAdoptable) {
		t.Errorf("adopt: %v", err)
	}
	pool, err := NewPool(PoolConfig{Provider: startNothing{}, Size: Spec{Memory: 1}, Greet: func(context.Context, VM) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := Adopt(t.Context(), pool, "x"); !errors.Is(err, ErrNotAdoptable) {
		t.Errorf("adopt of a pool: %v", err)
	}
}

type startNothing struct{}

func (startNothing) Start(context.Context, Spec) (VM, error) { return nil, errors.New("nothing") }
