//go:build race

package workflow

// slowness is how much slower code is under the race detector.
const slowness = 10
