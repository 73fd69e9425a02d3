package guest

import "time"

const (
	// clockLag is what a machine's clock may lag behind the host's because of the way that the time took.
	clockLag   = 20 * time.Millisecond
	clockTries = 16
)

// inTime passes id to tell, which returns what the machine's clock says then, if it was asked for that alone. Where the
// time took so long to get there that it was late, the clock is asked for a few times, until it is known how late: that
// it was between the question and the answer bounds how far it is off, and the two ways do not have to be short at once.
// Then it is shifted, which may take as long as it likes.
func inTime(id Identity, tell func(Identity) (time.Time, error)) error {
	begin := time.Now()
	if _, err := tell(id); err != nil || id.Time.IsZero() {
		return err
	}
	right := func() time.Time { return id.Time.Add(time.Since(begin)) } // what the clock should say
	least, most := -time.Since(begin), time.Duration(0)                 // that it is off
	if -least <= clockLag {
		return nil
	}
	for range clockTries {
		asked := right()
		clock, err := tell(Identity{})
		if err != nil {
			return err
		}
		least, most = max(least, clock.Sub(right())), min(most, clock.Sub(asked))
		if most-least <= clockLag {
			break
		}
	}
	_, err := tell(Identity{Shift: -(least + most) / 2})
	return err
}
