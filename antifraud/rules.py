"""All thresholds in one place, as data, and the hash that names them in every reason."""

from hashlib import blake2b

import msgspec

from antifraud.detectors.device_farm import DeviceFarm, DeviceFarmRules
from antifraud.detectors.refund_loop import RefundLoop, RefundLoopRules
from antifraud.detectors.repeat_burst import RepeatBurst, RepeatBurstRules
from antifraud.finding import Detector
from antifraud.scores import ScoreRules


class RuleSet(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds of every detector and of the scores."""

    device_farm: DeviceFarmRules = DeviceFarmRules()
    repeat_burst: RepeatBurstRules = RepeatBurstRules()
    refund_loop: RefundLoopRules = RefundLoopRules()
    scores: ScoreRules = ScoreRules()

    def name(self) -> str:
        """12 hex digits that change with any threshold."""
        return blake2b(msgspec.json.encode(self, order="sorted"), digest_size=6).hexdigest()


def make_detectors(rules: RuleSet) -> list[Detector]:
    """The detectors of layer B. A new one is listed here and nowhere else."""
    return [DeviceFarm(rules.device_farm), RepeatBurst(rules.repeat_burst), RefundLoop(rules.refund_loop)]
