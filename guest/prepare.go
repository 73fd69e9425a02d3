package guest

import "time"

const (
	// clockLag is what a machine's clock may lag behind the host's because of the way that the time took.
	clockLag   = 20 * time.Millisecond
	clockTries = 8
)

// inTime passes id to tell, which returns how long that took, and the time again while it took so long that the
// time was late: what a machine does for the first time may take it long.
func inTime(id Identity, tell func(Identity) (time.Duration, error)) error {
	for range clockTries {
		took, err := tell(id)
		if err != nil || took <= clockLag || id.Time.IsZero() {
			return err
		}
		id = Identity{Time: id.Time.Add(took)}
	}
	return nil
}
