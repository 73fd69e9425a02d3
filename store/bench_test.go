package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

func BenchmarkAccept(b *testing.B) {
	eachBench(b, func(b *testing.B, fresh func(testing.TB) store.Config) {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprint(callers, " callers"), func(b *testing.B) {
				s := open(b, fresh(b))
				var n atomic.Int64
				b.SetParallelism(callers)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, _, err := s.Accept(context.Background(), delivery(fmt.Sprint("bench ", n.Add(1)))); err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "accepted/s")
			})
		}
	})
}

// eachBench runs a benchmark on every database. The PostgreSQL of tests does not sync to its disk.
func eachBench(b *testing.B, fn func(b *testing.B, fresh func(testing.TB) store.Config)) {
	for name, fresh := range databases {
		b.Run(name, func(b *testing.B) { fn(b, fresh) })
	}
}

func BenchmarkClaim(b *testing.B) {
	eachBench(b, benchmarkClaim)
}

func benchmarkClaim(b *testing.B, fresh func(testing.TB) store.Config) {
	s := open(b, fresh(b))
	for i := range b.N {
		if _, _, err := s.Accept(context.Background(), delivery(fmt.Sprint("bench ", i))); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for range b.N {
		if _, err := s.Claim(context.Background(), store.ClaimRequest{Owner: "w", Lease: time.Minute, Kinds: []tgr.JobKind{tgr.PlanJob}}); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if _, err := s.Claim(context.Background(), store.ClaimRequest{Owner: "w", Lease: time.Minute}); !errors.Is(err, store.ErrNothing) {
		b.Fatal(err)
	}
}

// BenchmarkNext looks for the job to claim while 100,000 are queued: of one repository, of many, and, in vain, where
// max-parallel holds all of them up.
func BenchmarkNext(b *testing.B) {
	eachBench(b, func(b *testing.B, fresh func(testing.TB) store.Config) {
		for _, c := range []struct {
			name            string
			repos, parallel int
		}{{"1 repository", 1, 0}, {"100 repositories", 100, 0}, {"1000 repositories", 1000, 0}, {"held up", 1, 1}} {
			b.Run(c.name, func(b *testing.B) {
				s := open(b, fresh(b))
				crowd(b, s, 100_000, c.repos, c.parallel)
				for b.Loop() {
					if _, err := s.Next(context.Background(), tgr.WorkJob); (err == nil) != (c.parallel == 0) {
						b.Fatal(err)
					}
				}
			})
		}
	})
}
