//! The 64-bit Arm levels.

mod fours;
mod neon;

use super::level::level;

level!(
    neon_level, Neon, neon::Neon<false, false>, "neon",
    few: [1, 1, 2], thin: [0, 0, 0],
    rows: [3, 2], panels: 1, floats: 2 x 2
);
level!(
    neondot_level, NeonDot, neon::Neon<true, false>, "neon,dotprod",
    few: [1, 1, 2], thin: [0, 0, 0],
    rows: [3, 2], panels: 1, floats: 2 x 2
);
level!(
    neoni8mm_level, NeonI8mm, neon::Neon<true, true>, "neon,dotprod,i8mm",
    few: [1, 1, 2], thin: [0, 0, 0],
    rows: [4, 2], panels: 1, floats: 2 x 2
);
