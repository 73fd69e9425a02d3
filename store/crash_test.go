package store_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// A delivery that was acknowledged is there after the process was killed, with its run and its plan job, and so is
// every claim: kill -9 at a random moment of a busy server loses nothing.
func TestKilled(t *testing.T) {
	if path, url := os.Getenv("STORE_TEST_PATH"), os.Getenv("STORE_TEST_URL"); path+url != "" {
		acceptForever(store.Config{Path: path, URL: url})
	}
	eachFresh(t, killed)
}

func killed(t *testing.T, e *env) {
	t.Parallel()
	for round := range 3 {
		at := e.fresh(t)
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "STORE_TEST_PATH="+at.Path, "STORE_TEST_URL="+at.URL)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acked := map[string]bool{}
		for sc := bufio.NewScanner(out); sc.Scan(); {
			if id, ok := strings.CutSuffix(sc.Text(), "."); ok {
				acked[id] = true
			}
			if len(acked) == 100+round*77 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		cmd.Wait()
		s := open(t, at)
		ctx := context.Background()
		for id := range acked {
			if _, err := s.Delivery(ctx, tgr.DeliveryID(id)); err != nil {
				t.Fatalf("of %d acknowledged deliveries %q is lost: %v", len(acked), id, err)
			}
		}
		runs, err := s.Runs(ctx, store.RunFilter{Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range runs {
			if _, err := s.PlanJob(ctx, r.ID); err != nil {
				t.Errorf("run %d has no plan job: %v", r.ID, err)
			}
		}
		if len(runs) < len(acked) {
			t.Errorf("%d runs of %d acknowledged deliveries", len(runs), len(acked))
		}
		if back, err := s.OwnerGone(ctx, "killed"); err != nil || len(back) == 0 {
			t.Errorf("jobs claimed before the kill = %v, %v; want some, and that they are given back", back, err)
		}
		t.Logf("round %d: %d acknowledged, %d stored", round, len(acked), len(runs))
	}
}

// acceptForever accepts from several callers at once, and prints each delivery that it may acknowledge.
func acceptForever(at store.Config) {
	ctx := context.Background()
	s := must(store.Open(ctx, at))
	must(0, s.Ping(ctx))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for caller := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", caller, i)
				must2(s.Accept(ctx, delivery(id)))
				if i%20 == 0 {
					must(s.Claim(ctx, store.ClaimRequest{Owner: "killed", Lease: 1 << 40}))
				}
				mu.Lock()
				fmt.Println(id + ".")
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func must2(_ []tgr.RunID, _ bool, err error) {
	if err != nil {
		panic(err)
	}
}
